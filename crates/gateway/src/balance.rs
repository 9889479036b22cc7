//! Which target gets a request: the one with the fewest under way, ties in turn.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hutong_ipc::gateway::Role;

use crate::Shared;
use crate::table::App;
use crate::target::{InFlight, Target};

thread_local! {
    static TURN: Cell<usize> = const { Cell::new(0) };
}

/// Takes a target for one request, not one of `tried`. `None`: the table has changed meanwhile, or
/// nothing can serve now.
pub fn take(
    shared: &Arc<Shared>,
    app: &App,
    version: u64,
    tried: &[Arc<Target>],
) -> Option<InFlight> {
    let turn = TURN.with(|turn| turn.replace(turn.get().wrapping_add(1)));
    let usable: Vec<&Arc<Target>> = app
        .targets
        .iter()
        .filter(|(role, target)| *role == Role::Active && target.can_serve())
        .map(|(_, target)| target)
        .filter(|target| !tried.iter().any(|t| Arc::ptr_eq(t, target)))
        .collect();
    let count = usable.len();
    let target = (0..count)
        .map(|index| usable[(index + turn) % count])
        .min_by_key(|target| target.in_flight.load(Ordering::Relaxed))?;
    target.in_flight.fetch_add(1, Ordering::SeqCst);
    let taken = InFlight {
        target: target.clone(),
        shared: shared.clone(),
    };
    // Counted first, looked second: whoever swaps the table looks at the count after it.
    (shared.table.load().version == version).then_some(taken)
}
