//! Instances that may reach what they list and nothing else: their lists are checked again, noted, and made true by our
//! table before they start. The resolver asks for the addresses of names, as numbers ([`serve`]).

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use hutong_core::networks::{self, Networks};
use hutong_core::spec::EgressRule;
use hutong_core::spec::egress::{Block, no_consent, parse_egress};
use hutong_ipc::channel;
use hutong_ipc::docker::{Way, bridge_prefix};
use hutong_ipc::resolver::{Ask, Told};

use super::{Warden, lock};
use crate::egress::lists::{Holder, Lists};
use crate::egress::{self, Network};

/// How long the resolver may take to listen.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The widest network that an app's containers have.
const WIDEST: u8 = 24;

/// Answers the resolver until it ends.
pub fn serve(warden: &Arc<Warden>, line: &UnixStream) {
    while let Ok(Some((ask, _))) = channel::receive::<Ask>(line) {
        let good = match warden.open(&ask) {
            Ok(()) => true,
            Err(reason) => {
                // Not louder: apps can bring it about as often as they like.
                tracing::info!("an app with a list does not get an address: {reason}");
                false
            }
        };
        let told = Told::Opened { ask: ask.ask, good };
        // Others write to the same line.
        let _one = lock(&warden.lists);
        if channel::send(line, &told, &[]).is_err() {
            // Half of it may be on its way: nothing behind it would be understood.
            let _ = line.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

impl Warden {
    /// The entries of a list that somebody else checked.
    pub(super) fn checked_list(&self, texts: &[String]) -> Result<Vec<EgressRule>, String> {
        let rules = parse_egress(texts)?;
        let allowed = self.egress_allowed()?;
        for rule in &rules {
            if let Some(part) = rule.without_consent(&allowed) {
                return Err(no_consent(rule, part));
            }
        }
        Ok(rules)
    }

    /// The same for what runs: what the server's owner does not allow any more is left out.
    fn remaining_list(&self, texts: &[String]) -> Vec<EgressRule> {
        let allowed = self.egress_allowed().unwrap_or_default();
        let mut rules = parse_egress(texts).unwrap_or_default();
        rules.retain(|rule| match rule.without_consent(&allowed) {
            Some(part) => {
                tracing::warn!("{}", no_consent(rule, part));
                false
            }
            None => true,
        });
        rules
    }

    fn egress_allowed(&self) -> Result<Networks, String> {
        Networks::parse(&self.config.settings.egress_allow)
    }

    /// Makes a list true for a sandbox that is about to start.
    pub(super) fn fence_sandbox(
        &self,
        instance: &str,
        index: u16,
        rules: &[EgressRule],
    ) -> Result<(), String> {
        let holder = Holder::Sandbox {
            instance: instance.to_owned(),
        };
        self.fence(holder, |network| network.block(index), rules.to_vec())
    }

    /// The same for containers on a bridge. `again`: they may run already.
    pub(super) fn fence_containers(
        &self,
        bridge: &str,
        network: &str,
        texts: &[String],
        again: bool,
    ) -> Result<(), String> {
        let hash = bridge.strip_prefix(&bridge_prefix(&self.layout.tag, Way::Listed));
        let is_hash = |text: &str| {
            let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            text.len() == 6 && text.bytes().all(hex)
        };
        if !hash.is_some_and(is_hash) {
            return Err("not a bridge of apps with lists".into());
        }
        let clients = block_of(network)?;
        let settings = self.config.settings.docker.as_ref();
        let pool = block_of(&settings.ok_or("no engine is configured")?.pool)?;
        if !pool.contains(clients.first()) || clients.prefix() < pool.prefix().max(WIDEST) {
            return Err("not a network of an app's".into());
        }
        let rules = match again {
            true => self.remaining_list(texts),
            false => self.checked_list(texts)?,
        };
        if lock(&self.network).is_none() {
            self.ensure_egress()?;
        }
        let holder = Holder::Containers {
            bridge: bridge.to_owned(),
        };
        self.fence(holder, |_| clients, rules)
    }

    fn fence(
        &self,
        holder: Holder,
        clients: impl Fn(&Network) -> Block,
        rules: Vec<EgressRule>,
    ) -> Result<(), String> {
        let mut lists = lock(&self.lists);
        let network = lock(&self.network).clone();
        let network = network.ok_or("the egress network is not there")?;
        let clients = clients(&network);
        if lists.has(&holder, clients, &rules) {
            return Ok(());
        }
        let (id, clash) = lists.put(holder, clients, rules);
        let commands = lists.commands(id, network.table());
        let mut done = match clash {
            false => network.nft(&commands),
            true => Err("another's rules are in the way".into()),
        };
        if done.is_err() {
            // Somebody flushed the table, or half of it.
            done = network.make_rules(Some(&lists.all_commands(network.table())));
        }
        if done.is_err() {
            lists.remove(id, network.table());
        }
        hutong_ipc::fail::point("egress.fenced");
        done
    }

    /// Takes in the lists of sandboxes that outlived the warden before this one.
    pub(super) fn adopt_lists(&self, network: &Network, lists: &mut Lists) {
        for record in self.instances.all() {
            let (Some(index), Some(texts)) = (record.egress, &record.egress_list) else {
                continue;
            };
            let clients = network.block(index);
            // Whoever has the place by now is not what this record is about.
            if lists.is_taken(clients) {
                continue;
            }
            let holder = Holder::Sandbox {
                instance: record.instance.clone(),
            };
            lists.put(holder, clients, self.remaining_list(texts));
        }
    }

    /// Lets go of the lists of whoever has ended.
    pub(super) fn forget_lists(&self) {
        let known = lock(&self.lists).holders();
        if known.is_empty() {
            return;
        }
        // In this order: what is being launched is on record before it is no longer being launched.
        let launching: Vec<String> = {
            let list = lock(&self.launching);
            list.iter().map(|one| one.instance.clone()).collect()
        };
        let records = self.instances.all();
        let interfaces = egress::interfaces();
        let is_there = |holder: &Holder| match holder {
            Holder::Sandbox { instance } => {
                launching.contains(instance) || records.iter().any(|r| r.instance == *instance)
            }
            Holder::Containers { bridge } => interfaces.contains(bridge),
        };
        for (id, holder) in known {
            if is_there(&holder) {
                continue;
            }
            let mut lists = lock(&self.lists);
            let network = lock(&self.network).clone();
            let Some(network) = network else { return };
            if let Some(commands) = lists.remove(id, network.table())
                && let Err(error) = network.nft(&commands)
            {
                // Its addresses are nobody's, and go with the next table.
                tracing::debug!("the rules of {holder:?} are not there: {error}");
            }
        }
    }

    /// Opens what a listed name leads to.
    fn open(&self, ask: &Ask) -> Result<(), String> {
        let mut lists = lock(&self.lists);
        let network = lock(&self.network).clone();
        let network = network.ok_or("the egress network is not there")?;
        if let Some(opening) = lists.opening(ask, network.table())? {
            network.nft(&opening.commands)?;
            lists.note(opening);
        }
        Ok(())
    }
}

fn block_of(network: &str) -> Result<Block, String> {
    let parsed = network.parse::<networks::Network>();
    let parsed = parsed.map_err(|error| error.to_string())?;
    let (base, prefix) = parsed.v4().ok_or("not an IPv4 network")?;
    Ok(Block::around(base, prefix))
}
