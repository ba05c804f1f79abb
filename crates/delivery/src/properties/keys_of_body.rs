use crate::keys::{Parked, Touched};
use wire::Operation;
use wire::body;
use wire::properties::text;

/// A change holds back a later change of its key.
pub fn keys_of_body(input: &[u8]) {
    let Some(Ok(changes)) = text(input).map(body::parse) else { return };
    for change in changes.iter() {
        let pk = (change.operation != Operation::Truncate).then_some(change.pk.text);
        let touched = |data| Touched::new(&change.schema, &change.table, pk, data);
        let mut parked = Parked::default();
        parked.park(&touched(Some(change.data.text)), 0);
        assert!(parked.blocks(&touched(None), 1));
    }
}
