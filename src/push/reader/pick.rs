//! Picking the changes of a batch that may go now: a change waits for every earlier one of its keys.

use super::cross_priority::CrossPriority;
use delivery::batch::Batch;
use delivery::keys::{Parked, Touched};
use wire::Priority;

/// What may go of a batch.
#[derive(Default)]
pub struct Picked {
    /// The changes that may go, by their position in the batch.
    pub positions: Vec<usize>,
    /// How many have to wait for an earlier one of their keys.
    pub blocked: usize,
    /// The changes that stay in the outbox.
    pub left_behind: Vec<(Priority, i64)>,
}

/// Picks at most `most` changes of a batch, of one branch or of all. What has to wait, or belongs to another branch,
/// parks its keys, so that everything later of these waits as well.
pub fn pick(
    batch: &Batch,
    most: usize,
    wanted_branch: Option<&str>,
    parked: &mut Parked,
    cross_priority: &CrossPriority,
) -> Picked {
    let mut picked = Picked { positions: Vec::with_capacity(batch.len()), ..Picked::default() };
    let nothing_waits = parked.is_empty() && cross_priority.is_empty();
    if nothing_waits && wanted_branch.is_none() && batch.len() <= most {
        picked.positions.extend(0..batch.len());
        return picked;
    }
    for (i, change) in batch.changes.iter().enumerate() {
        let touched: Touched = batch.touched(change);
        let other_branch = wanted_branch.is_some() && change.branch.as_deref() != wanted_branch;
        let has_room = picked.positions.len() < most;
        if !other_branch && !parked.blocks(&touched, change.id) && !cross_priority.blocks(&touched, change) && has_room
        {
            picked.positions.push(i);
            continue;
        }
        parked.park(&touched, change.id);
        picked.left_behind.push((change.priority, change.id));
        if !other_branch && has_room {
            picked.blocked += 1;
        }
    }
    picked
}
