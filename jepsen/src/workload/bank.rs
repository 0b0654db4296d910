//! Accounts: transfers between two of them in MULTI, and reads of all in MULTI. The total is constant.

use std::time::Instant;

use serde_json::{Value, json};

use super::{Ended, Workload, words};
use crate::{
    check::Judgement,
    client::{Connection, Failure, Outcome},
    history::Operation,
};

const ACCOUNTS: i64 = 6;
const BALANCE: i64 = 100;

pub(crate) struct Bank;

fn account(number: &Value) -> String {
    format!("account:{number}")
}

fn execute(connection: &mut Connection, commands: &[Vec<String>]) -> Outcome<Vec<i64>> {
    let replies = connection.transaction(commands)?.ok_or_else(|| Failure::Info("EXEC gave nil".into()))?;
    replies.iter().map(|reply| reply.number().map(|number| number.unwrap_or(0))).collect()
}

impl Workload for Bank {
    fn prepare(&self, connection: &mut Connection) -> Outcome<()> {
        let mut command = words(&["MSET"]);
        for number in 0..ACCOUNTS {
            command.extend([account(&json!(number)), BALANCE.to_string()]);
        }
        connection.call(&command).map(|_| ())
    }

    fn next(&self, random: &mut fastrand::Rng) -> (&'static str, Value) {
        if random.u8(..3) == 0 {
            return ("read", json!(null));
        }
        let from = random.i64(0..ACCOUNTS);
        let to = (from + random.i64(1..ACCOUNTS)) % ACCOUNTS;
        ("transfer", json!({"from": from, "to": to, "amount": random.i64(1..20)}))
    }

    fn read(&self, _: &mut fastrand::Rng) -> Option<(&'static str, Value)> {
        Some(("read", json!(null)))
    }

    fn invoke(&self, connection: &mut Connection, f: &str, value: &Value) -> Result<Value, Ended> {
        if f == "read" {
            let reads: Vec<_> =
                (0..ACCOUNTS).map(|number| words(&["GET", &account(&json!(number))])).collect();
            return Ok(json!(execute(connection, &reads)?));
        }
        let amount = value["amount"].to_string();
        let steps = [
            words(&["DECRBY", &account(&value["from"]), &amount]),
            words(&["INCRBY", &account(&value["to"]), &amount]),
        ];
        execute(connection, &steps)?;
        Ok(value.clone())
    }

    fn last(&self) -> Vec<(&'static str, Value)> {
        vec![("read", json!(null))]
    }

    fn check(&self, operations: &[Operation], _: Instant) -> Judgement {
        check(operations)
    }
}

fn check(operations: &[Operation]) -> Judgement {
    let mut judgement = Judgement::default();
    for read in operations.iter().filter(|operation| operation.f == "read" && operation.is_ok()) {
        let balances = read.output.as_array().into_iter().flatten().filter_map(Value::as_i64);
        let total: i64 = balances.sum();
        if total != ACCOUNTS * BALANCE {
            let detail = format!("{} is {total} in all, not {}", read.output, ACCOUNTS * BALANCE);
            judgement.found("wrong total", detail, &[read.start]);
        }
    }
    judgement
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{
        Kind::{Invoke, Ok},
        operations,
        tests::history,
    };

    #[test]
    fn a_wrong_total_is_found() {
        let read = |first: i64| {
            let value = json!([first, 100, 100, 100, 100, 100]);
            check(&operations(&history(&[(1, Invoke, "read", json!(null)), (1, Ok, "read", value)])))
        };
        assert_eq!(read(100).findings, []);
        assert_eq!(read(99).findings[0].anomaly, "wrong total");
    }
}
