//! Numbers that are handed out: none twice, and one requested after another was received is greater.

use std::collections::BTreeMap;

use super::Judgement;
use crate::history::Operation;

/// Checks all numbers returned by `what`; `twice` names the anomaly of a duplicate.
pub(crate) fn check<'a>(
    what: &str,
    twice: &str,
    given: impl Iterator<Item = (i64, &'a Operation)>,
    judgement: &mut Judgement,
) {
    let mut by_number: BTreeMap<i64, &Operation> = BTreeMap::new();
    for (number, operation) in given {
        if let Some(other) = by_number.insert(number, operation) {
            judgement.found(twice, format!("{what} gave {number} twice"), &[operation.start, other.start]);
        }
    }
    // In descending order: no operation with a greater number may have completed before this one began.
    let mut earliest: Option<(i64, &Operation)> = None;
    for (number, operation) in by_number.into_iter().rev() {
        if let Some((greater, other)) = earliest.filter(|(_, other)| other.end < operation.start) {
            let detail = format!("{what} gave {number} after it had given {greater}");
            judgement.found("token regression", detail, &[operation.start, other.start]);
        }
        earliest = match earliest {
            Some(known) if known.1.end <= operation.end => Some(known),
            _ => Some((number, operation)),
        };
    }
}
