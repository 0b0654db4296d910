//! Judges histories. Checkers know nothing of nodes and faults: they see operations, and name what is
//! impossible.

pub(crate) mod append;
#[cfg(test)]
mod append_tests;
pub(crate) mod contents;
pub(crate) mod cycles;
pub(crate) mod election;
pub(crate) mod feed;
pub(crate) mod growth;
pub(crate) mod holds;
pub(crate) mod levels;
pub(crate) mod linear;
#[cfg(test)]
mod linear_tests;
pub(crate) mod once;
pub(crate) mod register;
pub(crate) mod rising;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::Index;

use crate::history::Operation;

/// The maximum number of findings reported under one name.
const TOLD_MAX: usize = 5;

/// Something that a correct server cannot do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// The established name of the anomaly.
    pub(crate) anomaly: String,
    pub(crate) detail: String,
    /// Indexes of the invocations that prove it.
    pub(crate) operations: Vec<usize>,
}

impl Finding {
    pub(crate) fn new(anomaly: &str, detail: impl Into<String>, operations: &[usize]) -> Finding {
        Finding { anomaly: anomaly.to_owned(), detail: detail.into(), operations: operations.to_vec() }
    }
}

/// The result of a checker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Judgement {
    pub(crate) findings: Vec<Finding>,
    /// What could not be decided, and why. Such a run is not clean.
    pub(crate) undecided: Vec<String>,
    /// What did not happen, so that the run proves less than it should.
    pub(crate) missing: Vec<String>,
}

impl Judgement {
    pub(crate) fn found(&mut self, anomaly: &str, detail: impl Into<String>, operations: &[usize]) {
        self.findings.push(Finding::new(anomaly, detail, operations));
    }

    /// Keeps a few findings of each name, and counts the rest.
    pub(crate) fn shorten(&mut self) {
        let all = std::mem::take(&mut self.findings);
        for finding in &all {
            let told = self.findings.iter().filter(|told| told.anomaly == finding.anomaly).count();
            if told < TOLD_MAX {
                self.findings.push(finding.clone());
            } else if told == TOLD_MAX {
                let count = all.iter().filter(|other| other.anomaly == finding.anomaly).count() - TOLD_MAX;
                self.findings.push(Finding::new(&finding.anomaly, format!("and {count} more"), &[]));
            }
        }
    }

    /// The distinct names of all findings.
    #[cfg(test)]
    pub(crate) fn names(&self) -> std::collections::BTreeSet<&str> {
        self.findings.iter().map(|finding| finding.anomaly.as_str()).collect()
    }
}

/// The operations by what stands in their input at `at`: a field, or an index.
pub(crate) fn by_key(operations: &[Operation], at: impl Index) -> BTreeMap<String, Vec<&Operation>> {
    let mut keys: BTreeMap<String, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        keys.entry(operation.input[&at].to_string()).or_default().push(operation);
    }
    keys
}
