//! Who may reach what it lists and nothing else, and what is open to it: addresses and networks of the list as long as
//! it is there, the addresses of names as long as they hold. Each place has a chain and two sets in our table. What goes
//! to nft is made of numbers here, and of the names of bridges, which were checked.
//!
//! Kept in memory, so that rules that somebody flushed come back as they were. After a restart of the warden a list is
//! made anew from the instance's record, and names are open again with the next question for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{Ipv4Addr, Shutdown};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hutong_core::spec::EgressRule;
use hutong_core::spec::egress::{Block, is_public};
use hutong_ipc::channel;
use hutong_ipc::resolver::{self, Ask, MAX_ADDRESSES, Told};

/// Addresses of names that one place may have open, each of their ports by itself.
const MAX_OPEN: usize = 1024;
/// What the kernel lets a set have: it counts what is being replaced, too.
const SET_SIZE: usize = 4 * MAX_OPEN;
/// For how long a name's address is open at least and at most, in seconds; then again as soon as it is asked for.
const LEAST_S: u32 = 60;
const MOST_S: u32 = 3600;
/// And this much longer: whoever was told an address connects a moment later.
const GRACE: Duration = Duration::from_secs(60);

/// Who has a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    Sandbox {
        instance: String,
    },
    /// All on this bridge.
    Containers {
        bridge: String,
    },
}

/// An address, and the port to which it is open; none for all.
type Open = (Ipv4Addr, Option<u16>);

struct Place {
    holder: Holder,
    /// Where its packets and questions come from.
    clients: Block,
    rules: Vec<EgressRule>,
    /// What names led to, and until when it is open.
    open: BTreeMap<Open, Instant>,
}

#[derive(Default)]
pub struct Lists {
    places: BTreeMap<u64, Place>,
    last: u64,
    /// The place on the bridge that was given last.
    pub last_index: u16,
    /// To the resolver, while there is one. Whoever writes to it holds our lock.
    line: Option<UnixStream>,
}

/// What is to be done for a resolver's question.
pub struct Opening {
    pub commands: String,
    place: u64,
    open: BTreeSet<Open>,
    until: Instant,
}

impl Lists {
    pub fn count(&self) -> usize {
        self.places.len()
    }

    pub fn holders(&self) -> Vec<(u64, Holder)> {
        let all = self.places.iter();
        all.map(|(id, place)| (*id, place.holder.clone())).collect()
    }

    pub fn has(&self, holder: &Holder, clients: Block, rules: &[EgressRule]) -> bool {
        self.places.values().any(|place| {
            place.holder == *holder && place.clients == clients && place.rules == rules
        })
    }

    /// Whether somebody with a list is at these addresses.
    pub fn is_taken(&self, clients: Block) -> bool {
        let mut all = self.places.values();
        all.any(|place| place.clients.overlaps(clients))
    }

    /// Notes who has a list, in place of whoever was there. True: the rules of those do not give way to
    /// [`Self::commands`], so that the table has to be made anew.
    pub fn put(&mut self, holder: Holder, clients: Block, rules: Vec<EgressRule>) -> (u64, bool) {
        let same_bridge = |other: &Holder| match (other, &holder) {
            (Holder::Containers { bridge: a }, Holder::Containers { bridge: b }) => a == b,
            _ => false,
        };
        let replaced: Vec<u64> = self
            .places
            .iter()
            .filter(|(_, old)| old.clients.overlaps(clients) || same_bridge(&old.holder))
            .map(|(id, _)| *id)
            .collect();
        let mut clash = false;
        for id in replaced {
            if let Some(old) = self.places.remove(&id) {
                let is_sandbox = |holder: &Holder| matches!(holder, Holder::Sandbox { .. });
                let both = is_sandbox(&old.holder) && is_sandbox(&holder);
                clash |= old.clients != clients || !(both || same_bridge(&old.holder));
                self.tell(&Told::Gone { id });
            }
        }
        self.last += 1;
        let id = self.last;
        let place = Place {
            holder,
            clients,
            rules,
            open: BTreeMap::new(),
        };
        self.tell(&Told::Place(place.told(id)));
        self.places.insert(id, place);
        (id, clash)
    }

    /// Forgets a place; what makes its rules go.
    pub fn remove(&mut self, id: u64, table: &str) -> Option<String> {
        let place = self.places.remove(&id)?;
        self.tell(&Told::Gone { id });
        let (key, first) = (place.key(), place.clients.first());
        let element = match &place.holder {
            Holder::Sandbox { .. } => format!("places {{ {first} }}"),
            Holder::Containers { bridge } => format!("bridges {{ \"{bridge}\" }}"),
        };
        Some(format!(
            "delete element inet {table} {element}\n\
             flush chain inet {table} l{key}\n\
             delete chain inet {table} l{key}\n\
             delete set inet {table} n{key}\n\
             delete set inet {table} p{key}\n"
        ))
    }

    /// What makes the rules of one place, whether they are there or not.
    pub fn commands(&self, id: u64, table: &str) -> String {
        let place = self.places.get(&id);
        place.map_or_else(String::new, |place| place.commands(table, Instant::now()))
    }

    /// The same for all, into a table that has none.
    pub fn all_commands(&self, table: &str) -> String {
        let now = Instant::now();
        let all = self.places.values();
        all.map(|place| place.commands(table, now)).collect()
    }

    /// What opens the addresses that a name leads to; none if they are open long enough. It counts once it is
    /// [noted](Self::note).
    ///
    /// # Errors
    /// The resolver may not ask for that: it reads what strangers wrote, and may have been broken into.
    pub fn opening(&mut self, ask: &Ask, table: &str) -> Result<Option<Opening>, &'static str> {
        let now = Instant::now();
        let place = self.places.get_mut(&ask.place).ok_or("it has ended")?;
        place.open.retain(|_, until| *until > now);
        if ask.addresses.len() > MAX_ADDRESSES || ask.entries.len() > place.rules.len() {
            return Err("more than there can be");
        }
        if !ask.addresses.iter().copied().all(is_public) {
            return Err("a name opens public addresses only");
        }
        let lasts = Duration::from_secs(ask.ttl_s.clamp(LEAST_S, MOST_S).into());
        let mut open = BTreeSet::new();
        for entry in &ask.entries {
            let rule = place.rules.get(usize::from(*entry));
            let rule = rule.filter(|rule| rule.block().is_none());
            let port = rule.ok_or("there is no such name in the list")?.port;
            open.extend(ask.addresses.iter().map(|address| (*address, port)));
        }
        let is_long_enough = |until: &Instant| *until >= now + lasts;
        open.retain(|one| !place.open.get(one).is_some_and(is_long_enough));
        if open.is_empty() {
            return Ok(None);
        }
        let more = open.iter().filter(|one| !place.open.contains_key(one));
        if place.open.len() + more.count() > MAX_OPEN {
            return Err("too many addresses are open already");
        }
        let timeout = lasts + GRACE;
        let mut commands = String::new();
        for set in Set::ALL {
            let elements = set.elements(open.iter().map(|one| (one, timeout)));
            let bare: Vec<String> = open.iter().filter_map(|one| set.element(one)).collect();
            if bare.is_empty() {
                continue;
            }
            let (name, bare) = (set.name(&place.key()), bare.join(", "));
            // What is there keeps its time when it is added, and only what is there can be deleted.
            let _ = write!(
                commands,
                "add element inet {table} {name} {{ {elements} }}\n\
                 delete element inet {table} {name} {{ {bare} }}\n\
                 add element inet {table} {name} {{ {elements} }}\n"
            );
        }
        Ok(Some(Opening {
            commands,
            place: ask.place,
            open,
            until: now + timeout,
        }))
    }

    /// An opening is done.
    pub fn note(&mut self, opening: Opening) {
        if let Some(place) = self.places.get_mut(&opening.place) {
            let until = opening.until;
            place
                .open
                .extend(opening.open.into_iter().map(|one| (one, until)));
        }
    }

    /// A resolver that begins: it is told who there is, and from now on who comes and goes.
    pub fn attach(&mut self, line: UnixStream) -> std::io::Result<()> {
        self.line = None;
        for (id, place) in &self.places {
            channel::send(&line, &Told::Place(place.told(*id)), &[])?;
        }
        self.line = Some(line);
        Ok(())
    }

    fn tell(&mut self, told: &Told) {
        let Some(line) = &self.line else { return };
        if let Err(error) = channel::send(line, told, &[]) {
            // If it lives, it notices, and another is started in its place.
            tracing::warn!("the resolver does not listen: {error}");
            let _ = line.shutdown(Shutdown::Both);
            self.line = None;
        }
    }
}

impl Place {
    /// What its chain and its sets are called by, behind a letter.
    fn key(&self) -> String {
        format!("{:08x}", self.clients.first().to_bits())
    }

    fn told(&self, id: u64) -> resolver::Place {
        resolver::Place {
            id,
            first: self.clients.first(),
            prefix: self.clients.prefix(),
            list: self.rules.iter().map(ToString::to_string).collect(),
        }
    }

    fn commands(&self, table: &str, now: Instant) -> String {
        let (key, clients) = (self.key(), self.clients);
        let mut text = format!(
            "add set inet {table} n{key} {{ type ipv4_addr; flags timeout; size {SET_SIZE}; }}\n\
             add set inet {table} p{key} {{ type ipv4_addr . inet_service; flags timeout; size {SET_SIZE}; }}\n\
             add chain inet {table} l{key}\n\
             flush set inet {table} n{key}\n\
             flush set inet {table} p{key}\n\
             flush chain inet {table} l{key}\n"
        );
        let mut rule = |what: &str| {
            let _ = writeln!(text, "add rule inet {table} l{key} {what}");
        };
        if matches!(self.holder, Holder::Containers { .. }) {
            rule(&format!("ip saddr != {clients} return"));
        }
        rule(&format!("ip daddr @n{key} accept"));
        rule(&format!("ip daddr . th dport @p{key} accept"));
        for one in &self.rules {
            match (one.block(), one.port) {
                (Some(block), None) => rule(&format!("ip daddr {block} accept")),
                (Some(block), Some(port)) => {
                    rule(&format!("ip daddr {block} th dport {port} accept"));
                }
                (None, _) => {}
            }
        }
        for set in Set::ALL {
            let open = self.open.iter();
            let left = open.map(|(one, until)| (one, until.saturating_duration_since(now)));
            let elements = set.elements(left.filter(|(_, left)| left.as_secs() > 0));
            if !elements.is_empty() {
                let name = set.name(&key);
                let _ = writeln!(text, "add element inet {table} {name} {{ {elements} }}");
            }
        }
        let _ = match &self.holder {
            Holder::Sandbox { .. } => {
                let first = clients.first();
                writeln!(
                    text,
                    "add element inet {table} places {{ {first} : jump l{key} }}"
                )
            }
            Holder::Containers { bridge } => writeln!(
                text,
                "add element inet {table} bridges {{ \"{bridge}\" : jump l{key} }}"
            ),
        };
        text
    }
}

/// The two sets of a place: addresses that are open to all ports, and those open to one.
#[derive(Clone, Copy)]
enum Set {
    AllPorts,
    OnePort,
}

impl Set {
    const ALL: [Set; 2] = [Set::AllPorts, Set::OnePort];

    fn name(self, key: &str) -> String {
        match self {
            Set::AllPorts => format!("n{key}"),
            Set::OnePort => format!("p{key}"),
        }
    }

    /// As nft writes it; none if it belongs into the other set.
    fn element(self, one: &Open) -> Option<String> {
        match (self, one) {
            (Set::AllPorts, (address, None)) => Some(address.to_string()),
            (Set::OnePort, (address, Some(port))) => Some(format!("{address} . {port}")),
            _ => None,
        }
    }

    fn elements<'a>(self, all: impl Iterator<Item = (&'a Open, Duration)>) -> String {
        let timed = all.filter_map(|(one, left)| {
            let element = self.element(one)?;
            Some(format!("{element} timeout {}s", left.as_secs()))
        });
        timed.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "hutong_t";

    fn clients(last: u8, prefix: u8) -> Block {
        Block::around(Ipv4Addr::new(10, 213, 8, last), prefix)
    }

    fn rules(list: &[&str]) -> Vec<EgressRule> {
        list.iter().map(|text| text.parse().expect(text)).collect()
    }

    fn sandbox(instance: &str) -> Holder {
        Holder::Sandbox {
            instance: instance.into(),
        }
    }

    fn containers() -> Holder {
        Holder::Containers {
            bridge: "hdl0123456789ab".into(),
        }
    }

    fn ask(place: u64, entries: &[u16], last: &[u8], ttl_s: u32) -> Ask {
        Ask {
            ask: 1,
            place,
            entries: entries.to_vec(),
            addresses: last
                .iter()
                .map(|n| Ipv4Addr::new(198, 51, 100, *n))
                .collect(),
            ttl_s,
        }
    }

    #[test]
    fn rules_say_what_the_list_says() {
        let mut lists = Lists::default();
        let list = rules(&[
            "a.test",
            "*.b.test:443",
            "203.0.113.0/24",
            "192.168.1.20:5432",
        ]);
        let (id, clash) = lists.put(sandbox("a-1"), clients(1, 32), list.clone());
        assert!(!clash && lists.has(&sandbox("a-1"), clients(1, 32), &list));
        let text = lists.commands(id, TABLE);
        let chain: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("add rule inet hutong_t l0ad50801 "))
            .collect();
        assert_eq!(
            chain,
            [
                "ip daddr @n0ad50801 accept",
                "ip daddr . th dport @p0ad50801 accept",
                "ip daddr 203.0.113.0/24 accept",
                "ip daddr 192.168.1.20 th dport 5432 accept",
            ]
        );
        assert!(
            text.ends_with("places { 10.213.8.1 : jump l0ad50801 }\n"),
            "{text}"
        );
        let (id, _) = lists.put(containers(), clients(16, 28), rules(&["a.test"]));
        let text = lists.commands(id, TABLE);
        assert!(
            text.contains("l0ad50810 ip saddr != 10.213.8.16/28 return\n"),
            "{text}"
        );
        assert!(
            text.contains("bridges { \"hdl0123456789ab\" : jump l0ad50810 }"),
            "{text}"
        );
        assert_eq!(lists.all_commands(TABLE).matches("add chain").count(), 2);
        let gone = lists.remove(id, TABLE).expect("it was there");
        assert!(gone.starts_with("delete element inet hutong_t bridges { \"hdl0123456789ab\" }\n"));
        assert!(lists.remove(id, TABLE).is_none() && lists.count() == 1);
    }

    #[test]
    fn whoever_comes_takes_the_place() {
        let mut lists = Lists::default();
        let (first, _) = lists.put(sandbox("a-1"), clients(1, 32), rules(&["a.test"]));
        // The same address: the same names of chain and sets.
        let (second, clash) = lists.put(sandbox("b-1"), clients(1, 32), rules(&["b.test"]));
        assert!(first != second && !clash && lists.count() == 1);
        assert!(lists.opening(&ask(first, &[0], &[1], 60), TABLE).is_err());
        let (_, clash) = lists.put(containers(), clients(16, 28), rules(&["a.test"]));
        assert!(!clash);
        let (_, clash) = lists.put(containers(), clients(16, 28), rules(&["b.test"]));
        assert!(!clash && lists.count() == 2);
        // The bridge got another network, and another bridge the one that it had.
        let (_, clash) = lists.put(containers(), clients(32, 28), rules(&["b.test"]));
        assert!(clash && lists.count() == 2);
        let other = Holder::Containers {
            bridge: "hdl0123456789ac".into(),
        };
        let (_, clash) = lists.put(other, clients(32, 28), rules(&["b.test"]));
        assert!(clash && lists.count() == 2);
        assert!(lists.is_taken(clients(33, 32)) && !lists.is_taken(clients(48, 32)));
    }

    #[test]
    fn names_open_what_they_may() {
        let mut lists = Lists::default();
        let list = rules(&["a.test", "*.b.test:443", "203.0.113.0/24"]);
        let (id, _) = lists.put(sandbox("a-1"), clients(1, 32), list);
        let open = |lists: &mut Lists, ask: &Ask| {
            let opening = lists.opening(ask, TABLE).expect("it may");
            let commands = opening.as_ref().map(|opening| opening.commands.clone());
            opening.into_iter().for_each(|opening| lists.note(opening));
            commands
        };
        let commands = open(&mut lists, &ask(id, &[0, 1], &[1, 2], 300)).expect("commands");
        assert_eq!(
            commands.lines().collect::<Vec<_>>(),
            [
                "add element inet hutong_t n0ad50801 { 198.51.100.1 timeout 360s, 198.51.100.2 timeout 360s }",
                "delete element inet hutong_t n0ad50801 { 198.51.100.1, 198.51.100.2 }",
                "add element inet hutong_t n0ad50801 { 198.51.100.1 timeout 360s, 198.51.100.2 timeout 360s }",
                "add element inet hutong_t p0ad50801 { 198.51.100.1 . 443 timeout 360s, 198.51.100.2 . 443 timeout 360s }",
                "delete element inet hutong_t p0ad50801 { 198.51.100.1 . 443, 198.51.100.2 . 443 }",
                "add element inet hutong_t p0ad50801 { 198.51.100.1 . 443 timeout 360s, 198.51.100.2 . 443 timeout 360s }",
            ]
        );
        // It is open long enough; a longer time, another port and another address are news.
        assert_eq!(open(&mut lists, &ask(id, &[0], &[1], 300)), None);
        let longer = open(&mut lists, &ask(id, &[0], &[1], u32::MAX)).expect("commands");
        assert!(longer.contains("198.51.100.1 timeout 3660s") && !longer.contains(" p0"));
        let shorter = open(&mut lists, &ask(id, &[1], &[3], 0)).expect("commands");
        assert!(
            shorter.contains("198.51.100.3 . 443 timeout 120s"),
            "{shorter}"
        );
        // They come back when the table is made anew.
        let again = lists.all_commands(TABLE);
        assert!(again.contains("198.51.100.2 timeout 3") && again.contains("198.51.100.3 . 443"));
        let mut wrong = |ask: Ask| lists.opening(&ask, TABLE).is_err();
        assert!(wrong(ask(id + 1, &[0], &[1], 60)));
        assert!(wrong(ask(id, &[2], &[1], 60)) && wrong(ask(id, &[3], &[1], 60)));
        assert!(wrong(ask(id, &[0], &[1; MAX_ADDRESSES + 1], 60)));
        assert!(wrong(ask(id, &[0, 0, 0, 0], &[1], 60)));
        for private in ["169.254.169.254", "10.0.0.1", "127.0.0.1", "192.168.1.20"] {
            let mut private_ask = ask(id, &[0], &[9], 60);
            private_ask
                .addresses
                .push(private.parse().expect("an address"));
            assert!(wrong(private_ask), "{private}");
        }
    }

    #[test]
    fn what_is_open_is_bounded() {
        let mut lists = Lists::default();
        let (id, _) = lists.put(sandbox("a-1"), clients(1, 32), rules(&["*.a.test"]));
        let mut opened = 0_u32;
        loop {
            let mut more = ask(id, &[0], &[], 60);
            more.addresses = (0..8)
                .map(|n| Ipv4Addr::from_bits(0xcb00_0000 + opened + n))
                .collect();
            match lists.opening(&more, TABLE) {
                Ok(Some(opening)) => lists.note(opening),
                _ => break,
            }
            opened += 8;
        }
        assert_eq!(opened as usize, MAX_OPEN);
        // What is open already may stay so.
        let mut again = ask(id, &[0], &[], 600);
        again.addresses = vec![Ipv4Addr::from_bits(0xcb00_0000)];
        assert!(
            lists
                .opening(&again, TABLE)
                .is_ok_and(|opening| opening.is_some())
        );
    }
}
