//! DNS messages, as far as lists need them (RFC 1035 §4): a question is read, a question of our own is made, the
//! addresses of an answer are read, and an answer of our own is made. All that comes in is hostile: every read is
//! within bounds, and every loop ends.

use std::net::Ipv4Addr;

use hutong_ipc::resolver::MAX_ADDRESSES;

pub const HEADER: usize = 12;
/// Without an extension, which we neither send nor answer, a message over UDP is not longer.
pub const MAX_UDP: usize = 512;
/// Records of one answer that are looked at.
const MAX_RECORDS: usize = 128;
/// Names that one name may lead on to.
const MAX_CHAIN: usize = 16;
/// Bytes of a name, labels with their lengths (RFC 1035 §2.3.4).
const MAX_NAME: usize = 255;

/// Kinds of records.
pub const A: u16 = 1;
pub const NS: u16 = 2;
pub const CNAME: u16 = 5;
pub const SOA: u16 = 6;
pub const MX: u16 = 15;
pub const TXT: u16 = 16;
pub const SRV: u16 = 33;
pub const CAA: u16 = 257;
/// The only class that there is (the internet).
pub const IN: u16 = 1;

/// How it went (RFC 1035 §4.1.1).
pub const NO_ERROR: u8 = 0;
pub const FORMAT_ERROR: u8 = 1;
pub const SERVER_FAILURE: u8 = 2;
pub const NO_SUCH_NAME: u8 = 3;
pub const REFUSED: u8 = 5;

/// One question, as an app sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub id: u16,
    /// Its labels in lower case with dots between; empty if that cannot say what it is, so that no entry names it.
    pub name: String,
    pub kind: u16,
    pub class: u16,
    wants_recursion: bool,
    /// Name, kind and class as they came.
    bytes: Vec<u8>,
}

impl Question {
    /// # Errors
    /// The answer, if there can be one: it is no message with one question.
    pub fn read(message: &[u8]) -> Result<Self, Option<Vec<u8>>> {
        let wrong = || refusal_of(message);
        let header = message.get(..HEADER).ok_or_else(wrong)?;
        let (id, flags) = (number(header, 0), number(header, 2));
        let one_question = number(header, 4) == 1;
        // A plain question: neither an answer nor anything else than a look-up.
        if flags & 0xf800 != 0 || !one_question {
            return Err(wrong());
        }
        let (name, after) = plain_name(message, HEADER).ok_or_else(wrong)?;
        let bytes = message.get(HEADER..after + 4).ok_or_else(wrong)?;
        let kind_at = bytes.len() - 4;
        Ok(Question {
            id,
            name,
            kind: number(bytes, kind_at),
            class: number(bytes, kind_at + 2),
            wants_recursion: flags & 0x0100 != 0,
            bytes: bytes.to_vec(),
        })
    }

    /// The same question with an id of our own.
    pub fn asked_as(&self, id: u16) -> Vec<u8> {
        let mut message = Vec::with_capacity(HEADER + self.bytes.len());
        // One question; with recursion.
        for field in [id, 0x0100, 1, 0, 0, 0] {
            message.extend_from_slice(&field.to_be_bytes());
        }
        message.extend_from_slice(&self.bytes);
        message
    }

    /// Whether a message is an answer to [`Self::asked_as`].
    pub fn is_answered_by(&self, message: &[u8], id: u16) -> bool {
        let Some(header) = message.get(..HEADER) else {
            return false;
        };
        let is_answer = number(header, 2) & 0xf800 == 0x8000;
        let question = message.get(HEADER..HEADER + self.bytes.len());
        // Letters of a name may come back in another case. Length bytes are below 64 and no letters.
        number(header, 0) == id
            && is_answer
            && number(header, 4) == 1
            && question.is_some_and(|question| question.eq_ignore_ascii_case(&self.bytes))
    }

    /// The addresses that an answer leads to; `None` if it makes no sense.
    pub fn addresses(&self, message: &[u8]) -> Option<Addresses> {
        let header = message.get(..HEADER)?;
        let code = (number(header, 2) & 0xf) as u8;
        let (mut name, _) = name(message, HEADER)?;
        let mut at = HEADER + self.bytes.len();
        let mut records = Vec::new();
        let count = usize::from(number(header, 6)).min(MAX_RECORDS);
        for _ in 0..count {
            let (record, after) = record(message, at)?;
            records.extend(record);
            at = after;
        }
        let mut ttl_s = u32::MAX;
        for _ in 0..=MAX_CHAIN {
            let own = records.iter().filter(|record| record.owner == name);
            let mut list = Vec::new();
            let mut next = None;
            for record in own {
                match &record.data {
                    Data::Address(address) if !list.contains(address) => {
                        ttl_s = ttl_s.min(record.ttl_s);
                        list.push(*address);
                    }
                    Data::Address(_) => {}
                    Data::Alias(to) => next = Some((to, record.ttl_s)),
                }
            }
            if let (true, Some((to, ttl))) = (list.is_empty(), next) {
                ttl_s = ttl_s.min(ttl);
                name.clone_from(to);
                continue;
            }
            return Some(Addresses { code, list, ttl_s });
        }
        None
    }

    /// An answer of our own: addresses, or none. Those that do not fit are left out.
    pub fn answer(&self, code: u8, addresses: &[Ipv4Addr], ttl_s: u32) -> Vec<u8> {
        let addresses = &addresses[..addresses.len().min(MAX_ADDRESSES)];
        let mut message = Vec::with_capacity(MAX_UDP);
        let flags = 0x8080 | (u16::from(self.wants_recursion) << 8) | u16::from(code & 0xf);
        for field in [self.id, flags, 1, addresses.len() as u16, 0, 0] {
            message.extend_from_slice(&field.to_be_bytes());
        }
        message.extend_from_slice(&self.bytes);
        for address in addresses {
            // The name is the question's: a pointer to behind the header.
            for field in [0xc000 | HEADER as u16, A, IN] {
                message.extend_from_slice(&field.to_be_bytes());
            }
            message.extend_from_slice(&ttl_s.to_be_bytes());
            message.extend_from_slice(&4_u16.to_be_bytes());
            message.extend_from_slice(&address.octets());
        }
        message
    }
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub code: u8,
    pub list: Vec<Ipv4Addr>,
    /// For how long all that led there holds.
    pub ttl_s: u32,
}

/// Whether more would have come over TCP.
pub fn is_cut(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// How an answer says that it went.
pub fn code_of(message: &[u8]) -> Option<u8> {
    Some(message.get(3)? & 0xf)
}

/// Puts another id into a message.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
}

/// The answer to what cannot be read; none to what is an answer itself, lest two of us never stop.
fn refusal_of(message: &[u8]) -> Option<Vec<u8>> {
    let header = message.get(..HEADER)?;
    if header[2] & 0x80 != 0 {
        return None;
    }
    let mut answer = vec![0; HEADER];
    answer[..2].copy_from_slice(&header[..2]);
    answer[2] = 0x80 | (header[2] & 0x79);
    answer[3] = 0x80 | FORMAT_ERROR;
    Some(answer)
}

/// Two bytes; `at` must be within.
fn number(bytes: &[u8], at: usize) -> u16 {
    let pair: Option<[u8; 2]> = bytes.get(at..at + 2).and_then(|pair| pair.try_into().ok());
    u16::from_be_bytes(pair.unwrap_or_default())
}

/// A name without pointers, as questions have it: its text, and where what follows it begins.
fn plain_name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let begin = at;
    let mut text = String::new();
    let mut is_plain = true;
    loop {
        let length = usize::from(*message.get(at)?);
        if length > 63 {
            return None;
        }
        let label = message.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if at - begin > MAX_NAME {
            return None;
        }
        if length == 0 {
            break;
        }
        is_plain &= label
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte));
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(
            label
                .iter()
                .map(|byte| char::from(byte.to_ascii_lowercase())),
        );
    }
    if !is_plain {
        text.clear();
    }
    Some((text, at))
}

/// A name with its pointers followed, in lower case: labels with their lengths. And where what follows it begins.
fn name(message: &[u8], mut at: usize) -> Option<(Vec<u8>, usize)> {
    let mut name = Vec::new();
    let mut after = None;
    // A pointer leads to before the place that the one before it led to; so there is a last one.
    let mut before = at;
    loop {
        let length = *message.get(at)?;
        match length >> 6 {
            0 => {
                let end = at + 1 + usize::from(length);
                let label = message.get(at + 1..end)?;
                name.push(length);
                name.extend(label.iter().map(u8::to_ascii_lowercase));
                if name.len() > MAX_NAME {
                    return None;
                }
                if length == 0 {
                    return Some((name, after.unwrap_or(end)));
                }
                at = end;
            }
            3 => {
                let low = *message.get(at + 1)?;
                let to = (usize::from(length & 0x3f) << 8) | usize::from(low);
                after.get_or_insert(at + 2);
                if to >= before {
                    return None;
                }
                (before, at) = (to, to);
            }
            _ => return None,
        }
    }
}

struct Record {
    owner: Vec<u8>,
    ttl_s: u32,
    data: Data,
}

enum Data {
    Address(Ipv4Addr),
    /// Another name for the same (CNAME).
    Alias(Vec<u8>),
}

/// One record, if it is of a kind that leads to an address; and where the next one begins.
fn record(message: &[u8], at: usize) -> Option<(Option<Record>, usize)> {
    let (owner, at) = name(message, at)?;
    // Kind, class, time to live, length.
    let fixed: [u8; 10] = message.get(at..at + 10)?.try_into().ok()?;
    let begin = at + 10;
    let end = begin + usize::from(number(&fixed, 8));
    let content = message.get(begin..end)?;
    let [_, _, _, _, a, b, c, d, _, _] = fixed;
    // A negative one is none (RFC 2181 §8).
    let ttl_s = match u32::from_be_bytes([a, b, c, d]) {
        ttl if ttl > i32::MAX as u32 => 0,
        ttl => ttl,
    };
    let data = match (number(&fixed, 0), number(&fixed, 2)) {
        (A, IN) => {
            let octets: Option<[u8; 4]> = content.try_into().ok();
            octets.map(|octets| Data::Address(octets.into()))
        }
        (CNAME, IN) => {
            let (to, after) = name(message, begin)?;
            (after == end).then_some(Data::Alias(to))
        }
        _ => None,
    };
    let record = data.map(|data| Record { owner, ttl_s, data });
    Some((record, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, proptest};

    fn wire(name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes
    }

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(wire(name));
        message.extend(kind.to_be_bytes());
        message.extend(IN.to_be_bytes());
        message
    }

    /// `content` as bytes; `owner` too, so that it may be a pointer.
    fn with_records(asked: &[u8], records: &[(Vec<u8>, u16, u32, Vec<u8>)]) -> Vec<u8> {
        let mut message = asked.to_vec();
        message[2] |= 0x80;
        message[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
        for (owner, kind, ttl, content) in records {
            message.extend(owner);
            message.extend(kind.to_be_bytes());
            message.extend(IN.to_be_bytes());
            message.extend(ttl.to_be_bytes());
            message.extend((content.len() as u16).to_be_bytes());
            message.extend(content);
        }
        message
    }

    fn read(name: &str) -> (Question, Vec<u8>) {
        let question = Question::read(&question(name, A)).expect("a question");
        let asked = question.asked_as(7);
        (question, asked)
    }

    #[test]
    fn a_question_is_read_and_asked_again() {
        let message = question("Api.Example.COM", A);
        let read = Question::read(&message).expect("a question");
        assert_eq!((read.id, read.kind, read.class), (0x1234, A, IN));
        assert_eq!(read.name, "api.example.com");
        let asked = read.asked_as(7);
        assert_eq!(asked[..2], [0, 7]);
        assert_eq!(asked[HEADER..], message[HEADER..]);
        let mut answer = asked.clone();
        assert!(!read.is_answered_by(&answer, 7));
        answer[2] |= 0x80;
        answer[HEADER + 1] = b'a';
        assert!(read.is_answered_by(&answer, 7) && !read.is_answered_by(&answer, 8));
        answer[HEADER + 1] = b'b';
        assert!(!read.is_answered_by(&answer, 7));
        assert_eq!(
            Question::read(&question("_srv._tcp.a.b", 33))
                .expect("one")
                .name,
            "_srv._tcp.a.b"
        );
        // A label may be any bytes; such a name is none of a list.
        let mut odd = question("a.b", A);
        odd[HEADER + 1] = b'.';
        assert_eq!(Question::read(&odd).expect("a question").name, "");
        assert_eq!(Question::read(&question("", A)).expect("the root").name, "");
    }

    #[test]
    fn what_is_no_question_is_answered_or_dropped() {
        assert_eq!(Question::read(&[]), Err(None));
        assert_eq!(Question::read(&[0; 11]), Err(None));
        let good = question("a.b", A);
        let mut answer = good.clone();
        answer[2] |= 0x80;
        assert_eq!(Question::read(&answer), Err(None));
        for cut in HEADER..good.len() {
            let refusal = Question::read(&good[..cut])
                .expect_err("cut")
                .expect("an answer");
            assert_eq!(
                (&refusal[..2], refusal[3] & 0xf),
                (&good[..2], FORMAT_ERROR)
            );
        }
        let mut two = good.clone();
        two[5] = 2;
        let mut update = good.clone();
        update[2] = 5 << 3;
        let mut pointer = good;
        pointer[HEADER] = 0xc0;
        for message in [two, update, pointer, question(&"a".repeat(64), A)] {
            assert!(matches!(Question::read(&message), Err(Some(_))));
        }
        let long = format!("{0}.{0}.{0}.{0}.{0}", "a".repeat(60));
        assert!(Question::read(&question(&long, A)).is_err());
    }

    #[test]
    fn addresses_are_found_behind_other_names() {
        let (question, asked) = read("a.b");
        let own = || vec![0xc0, 12];
        let plain = with_records(
            &asked,
            &[
                (own(), A, 60, vec![192, 0, 2, 1]),
                (own(), A, 30, vec![192, 0, 2, 2]),
                (own(), A, 30, vec![192, 0, 2, 2]),
                (own(), 28, 1, vec![0; 16]),
                (wire("other.b"), A, 1, vec![192, 0, 2, 9]),
            ],
        );
        let list = vec![Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
        let found = question.addresses(&plain).expect("addresses");
        assert_eq!(
            (found.code, found.ttl_s, found.list),
            (NO_ERROR, 30, list.clone())
        );
        // In any order, and in any case.
        let chain = with_records(
            &asked,
            &[
                (wire("Y.z"), A, 300, vec![192, 0, 2, 1]),
                (wire("x.z"), CNAME, 20, wire("y.Z")),
                (own(), CNAME, 40, wire("x.z")),
                (wire("y.z"), A, 300, vec![192, 0, 2, 2]),
            ],
        );
        let found = question.addresses(&chain).expect("addresses");
        assert_eq!((found.ttl_s, found.list), (20, list));
        let nothing = question
            .addresses(&with_records(&asked, &[]))
            .expect("none");
        assert!(nothing.list.is_empty());
        let negative = with_records(&asked, &[(own(), A, u32::MAX, vec![192, 0, 2, 1])]);
        assert_eq!(question.addresses(&negative).expect("one").ttl_s, 0);
    }

    #[test]
    fn answers_that_lead_nowhere_end() {
        let (question, asked) = read("a.b");
        let itself = with_records(&asked, &[(vec![0xc0, 12], CNAME, 1, wire("a.b"))]);
        assert_eq!(question.addresses(&itself), None);
        // Pointers to themselves, forward, and to one another.
        let at = asked.len() as u8;
        for to in [at, at + 2, at + 10] {
            let loops = with_records(&asked, &[(vec![0xc0, to], A, 1, vec![1, 2, 3, 4])]);
            assert_eq!(question.addresses(&loops), None);
        }
        let odd = with_records(&asked, &[(vec![0x40, 0], A, 1, vec![1, 2, 3, 4])]);
        assert_eq!(question.addresses(&odd), None);
        // More records than there are, and a length beyond the end.
        let mut more = with_records(&asked, &[]);
        more[7] = 1;
        assert_eq!(question.addresses(&more), None);
        let mut beyond = with_records(&asked, &[(vec![0xc0, 12], A, 1, vec![1, 2, 3, 4])]);
        let last = beyond.len() - 5;
        beyond[last] = 200;
        assert_eq!(question.addresses(&beyond), None);
        // Three bytes are no address.
        let short = with_records(&asked, &[(vec![0xc0, 12], A, 1, vec![1, 2, 3])]);
        assert!(question.addresses(&short).expect("none").list.is_empty());
    }

    #[test]
    fn our_own_answers_fit_and_are_read_as_written() {
        let long = format!("{0}.{0}.{0}.{0}", "a".repeat(62));
        let (question, _) = read(&long);
        let all: Vec<Ipv4Addr> = (0..40).map(|n| Ipv4Addr::new(203, 0, 113, n)).collect();
        let answer = question.answer(NO_ERROR, &all, 60);
        assert!(answer.len() <= MAX_UDP, "{}", answer.len());
        assert!(question.is_answered_by(&answer, 0x1234) && !is_cut(&answer));
        let found = question.addresses(&answer).expect("addresses");
        assert_eq!((found.ttl_s, &found.list[..]), (60, &all[..MAX_ADDRESSES]));
        let refused = question.answer(REFUSED, &[], 0);
        assert_eq!(code_of(&refused), Some(REFUSED));
        let mut other = refused;
        set_id(&mut other, 9);
        assert_eq!(other[..2], [0, 9]);
        set_id(&mut [], 9);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = (is_cut(&bytes), code_of(&bytes));
            match Question::read(&bytes) {
                Ok(question) => {
                    let _ = question.addresses(&bytes);
                    prop_assert!(question.asked_as(1).len() <= HEADER + MAX_NAME + 4);
                    prop_assert!(question.answer(0, &[Ipv4Addr::LOCALHOST; 99], 1).len() <= MAX_UDP);
                }
                Err(answer) => prop_assert!(answer.is_none_or(|answer| answer.len() == HEADER)),
            }
        }

        /// As above, but behind a question that is in order: most bytes are no header.
        #[test]
        fn no_answer_makes_it_panic(
            count in any::<u16>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let (question, asked) = read("a.example.com");
            let mut message = with_records(&asked, &[]);
            message[6..8].copy_from_slice(&count.to_be_bytes());
            message.extend(&bytes);
            if let Some(found) = question.addresses(&message) {
                prop_assert!(found.list.len() <= MAX_RECORDS);
            }
        }

        /// Answers in order with one byte changed or cut off.
        #[test]
        fn nor_does_one_that_is_almost_in_order(at in 0..200_usize, byte in any::<u8>(), cut in 0..200_usize) {
            let (question, asked) = read("a.example.com");
            let own = vec![0xc0, 12];
            let mut message = with_records(&asked, &[
                (own.clone(), CNAME, 60, vec![1, b'b', 0xc0, 14]),
                (vec![1, b'b', 0xc0, 14], CNAME, 60, wire("c.example.org")),
                (wire("c.example.org"), A, 60, vec![192, 0, 2, 1]),
            ]);
            prop_assert!(question.addresses(&message).is_some_and(|found| found.list.len() == 1));
            let length = message.len();
            message[at % length] = byte;
            let _ = question.addresses(&message);
            let _ = question.addresses(&message[..cut.min(length)]);
        }
    }
}
