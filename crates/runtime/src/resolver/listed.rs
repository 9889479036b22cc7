//! Questions of those who may reach what they list and nothing else. A name that no entry names is refused. The
//! addresses that a listed one leads to are opened by the warden before the app hears of them, and what is neither
//! public nor listed itself is left out, wherever a name leads. Whoever is not known is refused.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use hutong_core::spec::EgressRule;
use hutong_core::spec::egress::{Block, is_public, parse_egress};
use hutong_ipc::channel;
use hutong_ipc::resolver::{Ask, MAX_ADDRESSES, Place, Told};

use super::{TIMEOUT, connected, lock, read_message};
use crate::dns::{self, Question};

/// Questions of one client that are under way.
const MAX_BUSY: usize = 16;
/// How long the warden may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// No app is told to remember an address for longer than it is open, in seconds.
const MAX_TTL_S: u32 = 3600;
/// A line that ended while the warden lives: it begins again without us, or has given us up.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// Kinds of records that are passed on as they are: what they name must be asked for in turn. All others, IPv6
/// addresses among them, are answered as if there were none.
const PASSED: [u16; 7] = [
    dns::NS,
    dns::CNAME,
    dns::SOA,
    dns::MX,
    dns::TXT,
    dns::SRV,
    dns::CAA,
];

pub struct Listed {
    upstreams: Arc<[SocketAddr]>,
    clients: Mutex<Vec<Arc<Client>>>,
    line: Mutex<Line>,
}

/// Who has a list.
struct Client {
    id: u64,
    block: Block,
    rules: Vec<EgressRule>,
    busy: AtomicUsize,
}

/// The writing half; what comes is heard by [`Listed::listen`].
struct Line {
    socket: UnixStream,
    last: u64,
    waiting: HashMap<u64, mpsc::Sender<bool>>,
}

/// A question that is under way.
struct Busy(Arc<Client>);

impl Busy {
    /// None if its client has too many.
    fn begin(client: &Arc<Client>) -> Option<Self> {
        let one = Busy(client.clone());
        (client.busy.fetch_add(1, Ordering::Relaxed) < MAX_BUSY).then_some(one)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Listed {
    pub fn new(line: &UnixStream, upstreams: Arc<[SocketAddr]>) -> io::Result<Self> {
        let socket = line.try_clone()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Listed {
            upstreams,
            clients: Mutex::default(),
            line: Mutex::new(Line {
                socket,
                last: 0,
                waiting: HashMap::new(),
            }),
        })
    }

    /// Who there is when this process begins.
    pub fn learn(&self, line: &UnixStream, count: usize) -> Result<(), String> {
        for _ in 0..count {
            let (told, _) = channel::receive::<Told>(line)
                .map_err(|error| error.to_string())?
                .ok_or("the warden went away")?;
            self.hear(told);
        }
        Ok(())
    }

    /// Hears the warden until it goes.
    pub fn listen(&self, line: &UnixStream) {
        let parent = rustix::process::getppid();
        while let Ok(Some((told, _))) = channel::receive::<Told>(line) {
            self.hear(told);
        }
        lock(&self.line).waiting.clear();
        // Those without a list are answered on. The next warden ends this process; one that lives does so by itself,
        // or waits for our end to start another.
        std::thread::sleep(GIVEN_UP);
        if rustix::process::getppid() == parent {
            std::process::exit(1);
        }
    }

    fn hear(&self, told: Told) {
        match told {
            Told::Place(place) => self.put(&place),
            Told::Gone { id } => lock(&self.clients).retain(|client| client.id != id),
            Told::Opened { ask, good } => {
                let waiting = lock(&self.line).waiting.remove(&ask);
                if let Some(waiting) = waiting {
                    let _ = waiting.send(good);
                }
            }
        }
    }

    fn put(&self, place: &Place) {
        let block = Block::around(place.first, place.prefix);
        // All or none: entries are told to the warden by their numbers.
        let rules = parse_egress(&place.list).unwrap_or_else(|reason| {
            tracing::error!("a list is not understood, and nothing of it is open: {reason}");
            Vec::new()
        });
        let mut clients = lock(&self.clients);
        clients.retain(|known| !known.block.overlaps(block));
        clients.push(Arc::new(Client {
            id: place.id,
            block,
            rules,
            busy: AtomicUsize::new(0),
        }));
    }

    fn find(&self, address: IpAddr) -> Option<Arc<Client>> {
        let IpAddr::V4(address) = address else {
            return None;
        };
        let clients = lock(&self.clients);
        let own = |client: &&Arc<Client>| client.block.contains(address);
        clients.iter().find(own).cloned()
    }

    /// The answer to a message from `from`; none if it gets none.
    pub fn answer(&self, message: &[u8], from: IpAddr, by_tcp: bool) -> Option<Vec<u8>> {
        let question = match Question::read(message) {
            Ok(question) => question,
            Err(answer) => return answer,
        };
        let refused = || Some(question.answer(dns::REFUSED, &[], 0));
        let Some(client) = self.find(from) else {
            return refused();
        };
        let entries = client.entries(&question.name);
        if entries.is_empty() || question.class != dns::IN {
            return refused();
        }
        let _one = Busy::begin(&client)?;
        Some(match question.kind {
            dns::A => self.addresses(&question, &client, entries)?,
            kind if PASSED.contains(&kind) => self.pass(&question, by_tcp),
            _ => question.answer(dns::NO_ERROR, &[], 0),
        })
    }

    /// One question over TCP.
    pub fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let from = stream.peer_addr()?.ip();
        let client = self.find(from).ok_or(io::ErrorKind::NotFound)?;
        let _one = Busy::begin(&client).ok_or(io::ErrorKind::WouldBlock)?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let question = read_message(&mut stream)?;
        let answer = self.answer(&question[2..], from, true);
        stream.write_all(&framed(&answer.ok_or(io::ErrorKind::InvalidData)?))
    }

    fn addresses(
        &self,
        question: &Question,
        client: &Client,
        entries: Vec<u16>,
    ) -> Option<Vec<u8>> {
        let nothing = |code| Some(question.answer(code, &[], 0));
        let mut answer = self.ask(question, false);
        if answer.as_deref().is_some_and(dns::is_cut) {
            answer = self.ask(question, true);
        }
        let found = match answer.and_then(|answer| question.addresses(&answer)) {
            Some(found) if found.code == dns::NO_ERROR => found,
            Some(found) if found.code == dns::NO_SUCH_NAME => {
                return nothing(dns::NO_SUCH_NAME);
            }
            _ => return nothing(dns::SERVER_FAILURE),
        };
        let mut good = found.list;
        good.retain(|address| is_public(*address) || client.lists(*address));
        good.truncate(MAX_ADDRESSES);
        let ttl_s = found.ttl_s.min(MAX_TTL_S);
        // Private ones are open as far as they are listed, and no further because a name leads there.
        let public: Vec<Ipv4Addr> = good
            .iter()
            .copied()
            .filter(|address| is_public(*address))
            .collect();
        // Without a warden there is no answer, so that the app asks again: there will be one in a moment.
        if !public.is_empty() && !self.open(client.id, entries, public, ttl_s)? {
            return nothing(dns::SERVER_FAILURE);
        }
        Some(question.answer(dns::NO_ERROR, &good, ttl_s))
    }

    fn pass(&self, question: &Question, by_tcp: bool) -> Vec<u8> {
        match self.ask(question, by_tcp) {
            Some(mut answer) => {
                dns::set_id(&mut answer, question.id);
                answer
            }
            None => question.answer(dns::SERVER_FAILURE, &[], 0),
        }
    }

    /// Has the warden open addresses, and waits until they are; none if there is no warden.
    fn open(
        &self,
        place: u64,
        entries: Vec<u16>,
        addresses: Vec<Ipv4Addr>,
        ttl_s: u32,
    ) -> Option<bool> {
        let (tell, told) = mpsc::channel();
        let number = {
            let mut line = lock(&self.line);
            line.last += 1;
            let number = line.last;
            let ask = Ask {
                ask: number,
                place,
                entries,
                addresses,
                ttl_s,
            };
            if channel::send(&line.socket, &ask, &[]).is_err() {
                // Half of it may be on its way: nothing behind it would be understood.
                let _ = line.socket.shutdown(Shutdown::Both);
                return None;
            }
            // The answer is heard behind this lock.
            line.waiting.insert(number, tell);
            number
        };
        let good = told.recv_timeout(PATIENCE);
        lock(&self.line).waiting.remove(&number);
        good.ok()
    }

    /// Asks each server in turn until one can say. The question is our own, with an id that the app does not know: else
    /// it might have a friend outside answer in the server's name.
    fn ask(&self, question: &Question, by_tcp: bool) -> Option<Vec<u8>> {
        let mut last = None;
        for upstream in self.upstreams.iter() {
            let mut id = [0; 2];
            getrandom::fill(&mut id).ok()?;
            let id = u16::from_ne_bytes(id);
            let asked = question.asked_as(id);
            let fits = |message: &[u8]| question.is_answered_by(message, id);
            let answer = match by_tcp {
                true => over_tcp(&asked, *upstream),
                false => over_udp(&asked, *upstream, fits),
            };
            let Some(answer) = answer.ok().filter(|answer| fits(answer)) else {
                continue;
            };
            match dns::code_of(&answer) {
                Some(dns::NO_ERROR | dns::NO_SUCH_NAME) => return Some(answer),
                _ => last = Some(answer),
            }
        }
        last
    }
}

impl Client {
    /// The numbers of the entries that name a host.
    fn entries(&self, host: &str) -> Vec<u16> {
        let numbered = (0..).zip(&self.rules);
        numbered
            .filter(|(_, rule)| rule.names(host))
            .map(|(number, _)| number)
            .collect()
    }

    fn lists(&self, address: Ipv4Addr) -> bool {
        let mut blocks = self.rules.iter().filter_map(EgressRule::block);
        blocks.any(|block| block.contains(address))
    }
}

fn over_udp(
    asked: &[u8],
    upstream: SocketAddr,
    fits: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let socket = connected(upstream)?;
    socket.send(asked)?;
    let deadline = Instant::now() + TIMEOUT / 2;
    let mut answer = vec![0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut answer)?;
        // What does not fit is somebody else's, or late; the right one may come yet.
        if fits(&answer[..length]) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

fn over_tcp(asked: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let mut server = TcpStream::connect_timeout(&upstream, TIMEOUT)?;
    server.set_write_timeout(Some(TIMEOUT))?;
    server.write_all(&framed(asked))?;
    Ok(read_message(&mut server)?.split_off(2))
}

/// A message behind its length.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = (message.len() as u16).to_be_bytes().to_vec();
    frame.extend_from_slice(message);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 213, 7, 208);

    fn place(id: u64, first: Ipv4Addr, list: &[&str]) -> Place {
        Place {
            id,
            first,
            prefix: 32,
            list: list.iter().map(|entry| (*entry).to_owned()).collect(),
        }
    }

    /// A name server that leads every name to these addresses, and counts questions.
    fn upstream(addresses: &'static [Ipv4Addr]) -> (SocketAddr, Arc<AtomicUsize>) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let address = socket.local_addr().expect("an address");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::Relaxed);
                let question = Question::read(&buffer[..length]).expect("a question");
                let answer = question.answer(dns::NO_ERROR, addresses, 77);
                // First one that does not fit.
                let mut wrong = answer.clone();
                dns::set_id(&mut wrong, !question.id);
                let _ = socket.send_to(&wrong, from);
                let _ = socket.send_to(&answer, from);
            }
        });
        (address, asked)
    }

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend_from_slice(label.as_bytes());
        }
        message.extend_from_slice(&[0, (kind >> 8) as u8, kind as u8, 0, 1]);
        message
    }

    /// A warden that says `good` to everything, and passes on what it was asked.
    fn warden(line: UnixStream, good: bool) -> mpsc::Receiver<Ask> {
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            while let Ok(Some((ask, _))) = channel::receive::<Ask>(&line) {
                let answer = Told::Opened { ask: ask.ask, good };
                let _ = tell.send(ask);
                if channel::send(&line, &answer, &[]).is_err() {
                    return;
                }
            }
        });
        told
    }

    fn listed(good: bool, upstream: SocketAddr) -> (Arc<Listed>, mpsc::Receiver<Ask>) {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        let listed = Arc::new(Listed::new(&ours, [upstream].into()).expect("a resolver"));
        let hears = listed.clone();
        std::thread::spawn(move || {
            while let Ok(Some((told, _))) = channel::receive::<Told>(&ours) {
                hears.hear(told);
            }
        });
        (listed, warden(theirs, good))
    }

    #[test]
    fn names_are_opened_before_they_are_told_and_others_are_refused() {
        const LED_TO: [Ipv4Addr; 5] = [
            Ipv4Addr::new(198, 51, 100, 1),
            Ipv4Addr::new(169, 254, 169, 254),
            Ipv4Addr::new(127, 0, 0, 1),
            Ipv4Addr::new(192, 168, 1, 20),
            Ipv4Addr::new(192, 168, 1, 21),
        ];
        let (upstream, asked) = upstream(&LED_TO);
        let (listed, asks) = listed(true, upstream);
        let list = ["192.168.1.20:5432", "*.a.test:443", "x.a.test"];
        listed.put(&place(3, CLIENT, &list));
        let ask = |name: &str, kind: u16, from: Ipv4Addr| {
            let answer = listed.answer(&question(name, kind), from.into(), false);
            answer.expect("an answer")
        };
        let code = |answer: &[u8]| dns::code_of(answer).expect("a code");
        for (name, from) in [
            ("b.test", CLIENT),
            ("a.test", CLIENT),
            ("x.a.test", Ipv4Addr::new(10, 213, 7, 209)),
        ] {
            assert_eq!(code(&ask(name, dns::A, from)), dns::REFUSED, "{name}");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        let answer = ask("X.a.test", dns::A, CLIENT);
        let read = Question::read(&question("X.a.test", dns::A)).expect("a question");
        assert!(read.is_answered_by(&answer, 9));
        let found = read.addresses(&answer).expect("addresses");
        assert_eq!((found.ttl_s, found.list), (77, vec![LED_TO[0], LED_TO[3]]));
        let opened = asks.try_recv().expect("it was asked");
        assert_eq!((opened.place, opened.ttl_s), (3, 77));
        assert_eq!(
            (opened.entries, opened.addresses),
            (vec![1, 2], vec![LED_TO[0]])
        );
        // No IPv6, and no hints at addresses.
        for kind in [28, 65, 255] {
            let answer = ask("x.a.test", kind, CLIENT);
            assert_eq!((code(&answer), answer[7]), (dns::NO_ERROR, 0));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        let texts = ask("x.a.test", dns::TXT, CLIENT);
        assert_eq!((code(&texts), &texts[..2]), (dns::NO_ERROR, &[0, 9][..]));
        listed.hear(Told::Gone { id: 3 });
        assert_eq!(code(&ask("x.a.test", dns::A, CLIENT)), dns::REFUSED);
    }

    #[test]
    fn what_is_not_opened_is_not_told() {
        const LED_TO: [Ipv4Addr; 1] = [Ipv4Addr::new(198, 51, 100, 1)];
        let (upstream, _) = upstream(&LED_TO);
        let (listed, asks) = listed(false, upstream);
        listed.put(&place(1, CLIENT, &["a.test"]));
        let ask = || listed.answer(&question("a.test", dns::A), CLIENT.into(), false);
        let answer = ask().expect("an answer");
        assert_eq!(dns::code_of(&answer), Some(dns::SERVER_FAILURE));
        assert_eq!(answer[7], 0);
        drop(asks);
        // Another in its place; and one with as many questions as it may have.
        listed.put(&place(2, CLIENT, &["b.test"]));
        let answer = ask().expect("an answer");
        assert_eq!(dns::code_of(&answer), Some(dns::REFUSED));
        let client = listed.find(CLIENT.into()).expect("a client");
        let busy: Vec<_> = (0..MAX_BUSY).map(|_| Busy::begin(&client)).collect();
        assert!(busy.iter().all(Option::is_some) && Busy::begin(&client).is_none());
        let more = listed.answer(&question("b.test", 28), CLIENT.into(), false);
        assert_eq!(more, None);
        drop(busy);
        assert!(
            listed
                .answer(&question("b.test", 28), CLIENT.into(), false)
                .is_some()
        );
    }
}
