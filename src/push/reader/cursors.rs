//! How far each priority has been read. [`super`] says what must hold for the changes behind a cursor.

use crate::store::snapshot::Snapshot;
use wire::Priority;

/// Below every id.
const HEAD: i64 = i64::MIN;

/// Where a rescan begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rescan {
    /// At the first change that was left behind the cursor.
    LeftBehind,
    /// At the first change there is: anything may have been freed, or brought by hand.
    Head,
}

/// How far one priority has been read.
#[derive(Clone, Debug)]
pub struct Cursor {
    pub position: i64,
    /// The furthest position from which it has gone back. Up to there it may come upon changes that the session has in
    /// hand.
    went_back_from: i64,
    /// Nothing that the snapshot sees is in front of the cursor.
    pub at_end: bool,
    /// What this snapshot sees is read.
    pub committed: Snapshot,
    /// The first change behind the cursor that is still there and does not wait for a person.
    pub first_left_behind: Option<i64>,
}

impl Cursor {
    /// Has the next read begin with the changes above `position`, unless the cursor is there already, or before.
    fn go_back_to(&mut self, position: i64) {
        if position < self.position {
            self.went_back_from = self.went_back_from.max(self.position);
            self.position = position;
        }
    }

    /// Has the next read begin with this change, or with an earlier one.
    pub fn go_back_before(&mut self, id: i64) {
        self.go_back_to(id.saturating_sub(1));
    }

    /// Has the next read begin with the first change there is.
    pub fn go_back_to_head(&mut self) {
        self.go_back_to(HEAD);
    }

    /// Goes back for a rescan. What is left behind is found out anew.
    pub fn rescan(&mut self, from: Rescan) {
        match (from, self.first_left_behind) {
            (Rescan::Head, _) => self.go_back_to_head(),
            (Rescan::LeftBehind, Some(id)) => self.go_back_before(id),
            (Rescan::LeftBehind, None) => {}
        }
        (self.first_left_behind, self.at_end) = (None, false);
    }
}

/// Makes `first` the earlier one of itself and `id`.
pub fn note_first(first: &mut Option<i64>, id: i64) {
    *first = Some(first.map_or(id, |first| first.min(id)));
}

/// The cursors of all priorities. Steps that are rolled back restore a copy.
#[derive(Clone)]
pub struct Cursors([Cursor; 3]);

impl Cursors {
    /// Cursors in front of all changes.
    pub fn at_head() -> Self {
        let cursor = Cursor {
            position: HEAD,
            went_back_from: HEAD,
            at_end: false,
            committed: Snapshot::default(),
            first_left_behind: None,
        };
        Cursors([cursor.clone(), cursor.clone(), cursor])
    }

    pub fn of(&self, priority: Priority) -> &Cursor {
        &self.0[priority as usize]
    }

    pub fn of_mut(&mut self, priority: Priority) -> &mut Cursor {
        &mut self.0[priority as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = &Cursor> {
        self.0.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Cursor> {
        self.0.iter_mut()
    }

    /// Whether nothing that the snapshots see is in front of any cursor.
    pub fn are_at_end(&self) -> bool {
        self.iter().all(|cursor| cursor.at_end)
    }

    /// Whether one has gone back, so that it may come upon changes that the session has in hand.
    pub fn have_gone_back(&self) -> bool {
        self.iter().any(|cursor| cursor.position < cursor.went_back_from)
    }
}
