//! The arguments of a trigger function (`TriggerData`).

use super::heap::Tuple;
use pgrx::pg_sys;
use std::ffi::CStr;
use wire::Operation;

/// A trigger that is being fired.
pub struct Fired<'a>(&'a pg_sys::TriggerData);

impl<'a> Fired<'a> {
    /// `None` if the function was not called as a trigger.
    ///
    /// # Safety
    /// `fcinfo` is the call info PostgreSQL passed to a function, and outlives the result.
    pub unsafe fn from_call(fcinfo: pg_sys::FunctionCallInfo) -> Option<Self> {
        // SAFETY: by contract of this function; TriggerData starts with its node tag.
        unsafe {
            let context = (*fcinfo).context;
            (!context.is_null() && (*context).type_ == pg_sys::NodeTag::T_TriggerData)
                .then(|| Fired(&*context.cast::<pg_sys::TriggerData>()))
        }
    }

    /// Which operation fired it.
    pub fn event(&self) -> Operation {
        match self.0.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => Operation::Insert,
            pg_sys::TRIGGER_EVENT_UPDATE => Operation::Update,
            pg_sys::TRIGGER_EVENT_DELETE => Operation::Delete,
            _ => Operation::Truncate,
        }
    }

    pub fn is_after(&self) -> bool {
        self.0.tg_event & pg_sys::TRIGGER_EVENT_TIMINGMASK == pg_sys::TRIGGER_EVENT_AFTER
    }

    pub fn is_for_row(&self) -> bool {
        self.0.tg_event & pg_sys::TRIGGER_EVENT_ROW != 0
    }

    /// The trigger's oid; the clone on a partition has an oid of its own.
    pub fn oid(&self) -> pg_sys::Oid {
        // SAFETY: PostgreSQL sets tg_trigger for every call.
        unsafe { (*self.0.tg_trigger).tgoid }
    }

    pub fn function(&self) -> pg_sys::Oid {
        // SAFETY: as above.
        unsafe { (*self.0.tg_trigger).tgfoid }
    }

    pub fn relation(&self) -> super::relation::Borrowed<'a> {
        // SAFETY: the relation stays open and locked while its trigger runs.
        unsafe { super::relation::Borrowed::new(self.0.tg_relation) }
    }

    /// The only argument of our triggers, if there is one.
    pub fn argument(&self) -> Option<&'a [u8]> {
        // SAFETY: tgargs holds tgnargs C strings that live as long as the relation is open.
        unsafe {
            let trigger = &*self.0.tg_trigger;
            (trigger.tgnargs == 1).then(|| CStr::from_ptr(*trigger.tgargs).to_bytes())
        }
    }

    /// The row before the change: UPDATE and DELETE.
    pub fn old(&self) -> Option<Tuple<'a>> {
        match self.event() {
            Operation::Update | Operation::Delete => self.tuple(self.0.tg_trigtuple),
            _ => None,
        }
    }

    /// The row after the change: INSERT and UPDATE.
    pub fn new_row(&self) -> Option<Tuple<'a>> {
        match self.event() {
            Operation::Insert => self.tuple(self.0.tg_trigtuple),
            Operation::Update => self.tuple(self.0.tg_newtuple),
            _ => None,
        }
    }

    fn tuple(&self, tuple: pg_sys::HeapTuple) -> Option<Tuple<'a>> {
        // SAFETY: the rows that a trigger is handed are of its relation, which stays open and locked while it runs.
        unsafe { Tuple::new(tuple, (*self.0.tg_relation).rd_att) }
    }
}
