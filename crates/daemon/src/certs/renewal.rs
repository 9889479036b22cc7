//! Asks the authority when it would like to see a certificate renewed (RFC 9773, "ARI"): sooner than planned
//! where it is about to revoke it, else spread over time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hutong_acme::account::Account;
use hutong_acme::error::Error;
use hutong_acme::renewal::{CertificateIdentifier, identifier, window};
use hutong_acme::schedule::Window;
use hutong_ipc::gateway::Held;

use super::Wish;
use super::issuer::{account_of, now};
use crate::{Control, lock};

/// Whatever it says, it is asked again not sooner and not later (RFC 9773 §4.3.2).
const SOONEST_S: u64 = 60;
const LATEST_S: u64 = 86_400;
/// When it did not answer, or has no such wishes.
const UNANSWERED_S: u64 = 6 * 3600;
/// After an answer that did not come, for any of them.
const QUIET_S: u64 = 600;
/// Questions in one pass: orders are not to wait for them.
const MOST: usize = 10;

/// The questions of one pass.
pub struct Asking {
    left: usize,
    account: Option<Account>,
}

impl Asking {
    /// Forgets what was said about certificates that are not held any more.
    pub fn new(control: &Control, held: &[Held]) -> Self {
        let held: BTreeSet<&str> = held.iter().map(|one| one.fingerprint.as_str()).collect();
        lock(&control.certs.wishes).retain(|fingerprint, _| held.contains(fingerprint.as_str()));
        Asking {
            left: MOST,
            account: None,
        }
    }

    /// Asks about a certificate if it is time to; when it is time again, in seconds since 1970.
    pub async fn about(&mut self, control: &Arc<Control>, held: &Held) -> u64 {
        let known = lock(&control.certs.wishes).get(&held.fingerprint).copied();
        if let Some(known) = known.filter(|known| known.ask_s > now()) {
            return known.ask_s;
        }
        let Some(id) = held.renewal_id.as_deref().and_then(identifier) else {
            return u64::MAX;
        };
        let quiet_until_s = control.certs.quiet_until_s.load(Ordering::Relaxed);
        if quiet_until_s > now() {
            return quiet_until_s;
        }
        if self.left == 0 {
            return now() + 1;
        }
        self.left -= 1;
        let mut wish = known.unwrap_or(Wish {
            window: None,
            ask_s: 0,
        });
        wish.ask_s = now() + UNANSWERED_S;
        match self.ask(control, &id).await {
            Ok(Some((window, again_s))) => {
                wish.window = Some(window);
                wish.ask_s = now() + again_s.clamp(SOONEST_S, LATEST_S);
            }
            Ok(None) => wish.window = None,
            Err(problem) => {
                tracing::debug!("when to renew {} was not told: {problem}", held.name);
                if matches!(
                    problem,
                    Error::Unreachable { .. } | Error::RateLimited { .. }
                ) {
                    // Others would wait for it in vain, too.
                    let until_s = now() + QUIET_S;
                    control
                        .certs
                        .quiet_until_s
                        .store(until_s, Ordering::Relaxed);
                }
            }
        }
        lock(&control.certs.wishes).insert(held.fingerprint.clone(), wish);
        wish.ask_s
    }

    async fn ask(
        &mut self,
        control: &Arc<Control>,
        id: &CertificateIdentifier<'static>,
    ) -> Result<Option<(Window, u64)>, Error> {
        let account = match &self.account {
            Some(account) => account,
            None => {
                let Some(acme) = &control.certs.acme else {
                    return Ok(None);
                };
                self.account.insert(account_of(control, acme).await?)
            }
        };
        let answer = window(account, id).await?;
        Ok(answer.map(|(window, again)| (window, again.as_secs())))
    }
}
