//! FastCGI: what we send is read by a plain reader of the specification, what an app answers is read by us, and any
//! bytes are read alike however they are cut.
#![no_main]

use hutong_fuzz::pairs::{self, Pair};
use hutong_fuzz::{cuts, fields};
use hutong_http::fastcgi::{
    Broken, CgiHead, Decoder, MAX_FIELDS, MAX_HEAD, Step, abort, begin, end_stdin, params,
    parse_head, stdin,
};
use libfuzzer_sys::fuzz_target;

const END: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;

fuzz_target!(|input: &[u8]| {
    any_answer(input);
    any_head(input);
    what_we_send_is_read(input);
    what_an_app_answers_is_read(input);
});

#[derive(Debug, Default, PartialEq)]
struct Answer {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Where it ends, and its two statuses.
    end: Option<(usize, u32, u8)>,
    broken: Option<Broken>,
}

fn decode(input: &[u8], ends: &[usize]) -> Answer {
    let (mut decoder, mut answer, mut from) = (Decoder::new(), Answer::default(), 0);
    for end in ends {
        while from < *end {
            let shown = &input[from..*end];
            let step = match decoder.next(shown) {
                Ok(step) => step,
                Err(broken) => {
                    answer.broken = Some(broken);
                    return answer;
                }
            };
            assert!((1..=shown.len()).contains(&step.consumed()), "{step:?}");
            from += step.consumed();
            match step {
                Step::More(all) => assert_eq!(all, shown.len()),
                Step::Stdout(data) => answer.stdout.extend(&shown[data]),
                Step::Stderr(data) => answer.stderr.extend(&shown[data]),
                Step::End {
                    app_status,
                    protocol_status,
                    ..
                } => {
                    answer.end = Some((from, app_status, protocol_status));
                    assert!(decoder.ended());
                    assert_eq!(decoder.next(b""), Ok(Step::More(0)));
                    assert_eq!(decoder.next(b"\x01"), Err(Broken::AfterEnd));
                    return answer;
                }
            }
            assert!(!decoder.ended());
        }
    }
    answer
}

fn any_answer(input: &[u8]) {
    let whole = decode(input, &[input.len()]);
    for ends in cuts::ways(input) {
        assert_eq!(decode(input, &ends), whole);
    }
    let plain = plainly(input);
    assert_eq!(whole.broken.is_some(), plain.broken.is_some());
    assert_eq!(
        (&whole.stdout, &whole.stderr, whole.end),
        (&plain.stdout, &plain.stderr, plain.end)
    );
}

/// The specification's §3.3 and §5.5, of bytes that are all there. Which error it is, is not said.
fn plainly(input: &[u8]) -> Answer {
    let mut answer = Answer::default();
    let mut at = 0;
    while let Some(&[version, kind, id_high, id_low, high, low, padding, _]) = input.get(at..at + 8)
    {
        at += 8;
        let content = usize::from(high) << 8 | usize::from(low);
        let seen = &input[at..input.len().min(at + content)];
        match (version, kind, u16::from_be_bytes([id_high, id_low])) {
            (1, STDOUT, 1) => answer.stdout.extend(seen),
            (1, STDERR, 1) => answer.stderr.extend(seen),
            (1, 0 | 9.., 0) => {}
            (1, END, 1) if content == 8 => {}
            _ => {
                answer.broken = Some(Broken::RecordType);
                return answer;
            }
        }
        at += content + usize::from(padding);
        if let (END, &[a, b, c, d, status, ..], true) = (kind, seen, at <= input.len())
            && content == 8
            && seen.len() == 8
            && id_low == 1
        {
            answer.end = Some((at, u32::from_be_bytes([a, b, c, d]), status));
            return answer;
        }
    }
    answer
}

fn any_head(input: &[u8]) {
    let whole = parse_head(input);
    for ends in cuts::ways(input) {
        let pieces = ends
            .iter()
            .map(|end| parse_head(&input[..*end]))
            .find(|answer| *answer != Ok(None))
            .unwrap_or(Ok(None));
        assert_eq!(pieces, whole);
    }
    let Ok(Some((head, used))) = &whole else {
        return;
    };
    assert!(*used <= input.len().min(MAX_HEAD) && input[..*used].ends_with(b"\n"));
    // Nothing behind it is waited for.
    assert_eq!(parse_head(&input[..*used]), whole);
    assert!((200..=999).contains(&head.status) && head.fields.len() <= MAX_FIELDS);
    let texts = texts(input, head);
    for (name, value) in &texts {
        assert!(fields::is_token(name) && fields::is_value(value));
        assert_eq!(value.trim_ascii(), *value);
        assert!(!name.eq_ignore_ascii_case(b"status"));
    }
    // Said again with the status in front, it is the same.
    let mut text = format!("Status:{}\n", head.status).into_bytes();
    for (name, value) in &texts {
        text.extend([name, &b":"[..], value, b"\n"].concat());
    }
    text.extend(b"\n");
    if texts.len() < MAX_FIELDS && text.len() <= MAX_HEAD {
        let (again, used) = parse_head(&text).expect("well formed").expect("whole");
        assert_eq!((again.status, used), (head.status, text.len()));
        assert_eq!(self::texts(&text, &again), texts);
    }
}

fn texts<'a>(input: &'a [u8], head: &CgiHead) -> Vec<Pair<'a>> {
    let fields = head.fields.iter();
    fields
        .map(|(name, value)| (&input[name.clone()], &input[value.clone()]))
        .collect()
}

fn what_we_send_is_read(input: &[u8]) {
    let pairs = pairs::split(input);
    let mut out = Vec::new();
    begin(&mut out, input.len() % 2 == 1);
    params(&mut out, pairs.iter().copied()).expect("below 2 GiB");
    stdin(&mut out, input);
    end_stdin(&mut out);
    abort(&mut out);

    let records = records(&out);
    let kinds: Vec<u8> = records.iter().map(|(kind, _)| *kind).collect();
    assert!(kinds.starts_with(&[1, PARAMS]) && kinds.ends_with(&[STDIN, 2]));
    assert!(kinds[1..kinds.len() - 1].is_sorted());
    assert_eq!(unpacked(&stream(&records, PARAMS)), pairs);
    assert_eq!(stream(&records, STDIN), input);
    // php-fpm reads each record on its own: a pair is split only if no record holds it.
    let holds = |(name, value): &Pair<'_>| 8 + name.len() + value.len() <= 0xFFFF;
    if pairs.iter().all(holds) {
        let each = records.iter().filter(|(kind, _)| *kind == PARAMS);
        let each: usize = each.map(|(_, content)| unpacked(content).len()).sum();
        assert_eq!(each, pairs.len());
    }
}

/// All records of request 1, as type and content.
fn records(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut found = Vec::new();
    while let [1, kind, 0, 1, high, low, 0, 0, rest @ ..] = bytes {
        let (content, rest) = rest.split_at(u16::from_be_bytes([*high, *low]).into());
        found.push((*kind, content));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "no record");
    found
}

/// What the records of a type hold; the last of them is empty, and only that.
fn stream(records: &[(u8, &[u8])], wanted: u8) -> Vec<u8> {
    let of_kind = records.iter().filter(|(kind, _)| *kind == wanted);
    let parts: Vec<&[u8]> = of_kind.map(|(_, content)| *content).collect();
    let empty = parts.iter().position(|part| part.is_empty());
    assert_eq!(empty, Some(parts.len() - 1), "the end of the stream");
    parts.concat()
}

/// Name-value pairs (§3.4).
fn unpacked(mut bytes: &[u8]) -> Vec<Pair<'_>> {
    let mut pairs = Vec::new();
    while !bytes.is_empty() {
        let (name, value) = (length(&mut bytes), length(&mut bytes));
        let (name, rest) = bytes.split_at(name);
        let (value, rest) = rest.split_at(value);
        pairs.push((name, value));
        bytes = rest;
    }
    pairs
}

fn length(bytes: &mut &[u8]) -> usize {
    let (length, rest) = match *bytes {
        [short @ 0..=127, rest @ ..] => (usize::from(*short), rest),
        [a, b, c, d, rest @ ..] => {
            let length = u32::from_be_bytes([a & 127, *b, *c, *d]);
            (length as usize, rest)
        }
        _ => panic!("no length"),
    };
    *bytes = rest;
    length
}

/// The input as what an app says, in records whose kinds and padding it chooses itself.
fn what_an_app_answers_is_read(input: &[u8]) {
    let (mut bytes, mut wanted) = (Vec::new(), Answer::default());
    for part in input.chunks(1 + input.len() / 7) {
        let padding = part[0];
        match padding % 3 {
            0 => wanted.stdout.extend(part),
            1 => wanted.stderr.extend(part),
            _ => {}
        }
        let (kind, id) = [(STDOUT, 1), (STDERR, 1), (10, 0)][usize::from(padding % 3)];
        record(&mut bytes, kind, id, part, padding);
    }
    let [a, b, ..] = (input.len() as u64).to_le_bytes();
    record(&mut bytes, END, 1, &[0, 0, a, b, a, 9, 9, 9], b);
    let status = u32::from_be_bytes([0, 0, a, b]);
    wanted.end = Some((bytes.len(), status, a));
    for ends in cuts::ways(&bytes) {
        assert_eq!(decode(&bytes, &ends), wanted);
    }
}

fn record(out: &mut Vec<u8>, kind: u8, id: u8, content: &[u8], padding: u8) {
    let [high, low] = (content.len() as u16).to_be_bytes();
    out.extend([1, kind, 0, id, high, low, padding, 0xAA]);
    out.extend_from_slice(content);
    out.extend(vec![0xFF; padding.into()]);
}
