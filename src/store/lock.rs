//! Locks: who holds one, since which grant, until when. Always small; they lie in their key's page.
//!
//! A lock's key dies with its last holder, so its deadline is the latest of the holders'. A holder whose own
//! deadline has passed holds nothing, though it may still stand here until the next change.

use super::{
    codec::{Input, put_bytes, put_varint},
    digest::Digest,
    dirty::Dirty,
    object::{Kind, Pages, Typed, Value},
};

/// One owner's hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Chosen by the client.
    pub owner: Box<[u8]>,
    /// The number of the grant; rises over all locks.
    pub token: u64,
    /// How many releases are due.
    pub count: u64,
    /// It holds as long as the log clock is not past this, in milliseconds since the Unix epoch.
    pub deadline: u64,
    /// What the owner wants others to see.
    pub data: Box<[u8]>,
}

/// A lock.
///
/// Invariants:
/// - Unless it is shared, it has at most one holder.
/// - No two holders have the same owner, and no two the same token.
#[derive(Clone, Debug, Default)]
pub struct Lock {
    is_shared: bool,
    holders: Vec<Holder>,
}

/// What an owner asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Who asks.
    pub owner: &'a [u8],
    /// Together with others who share.
    pub is_shared: bool,
    /// How long it may be held without being renewed.
    pub deadline: u64,
    /// None leaves what an earlier acquisition said.
    pub data: Option<&'a [u8]>,
}

impl Lock {
    /// Whether its holders share it.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Who holds it.
    pub fn holders(&self, now_ms: u64) -> impl Iterator<Item = &Holder> {
        self.holders.iter().filter(move |holder| holder.deadline >= now_ms)
    }

    /// The hold of an owner.
    pub fn of_owner(&self, owner: &[u8], now_ms: u64) -> Option<&Holder> {
        self.holders(now_ms).find(|holder| *holder.owner == *owner)
    }

    /// When the last hold ends.
    pub fn last_deadline(&self) -> Option<u64> {
        self.holders.iter().map(|holder| holder.deadline).max()
    }

    /// Grants it, if it is free for this wish: under `token` if that is a new grant. Gives the owner's hold, or
    /// None if others are in the way. Who holds it already holds it once more, under the same token and not
    /// for a shorter time.
    pub fn acquire(&mut self, wish: Wish<'_>, token: u64, now_ms: u64) -> Option<&Holder> {
        self.holders.retain(|holder| holder.deadline >= now_ms);
        let is_alone = self.holders.len() <= 1;
        if let Some(at) = self.holders.iter().position(|holder| *holder.owner == *wish.owner) {
            if self.is_shared && !wish.is_shared && !is_alone {
                return None;
            }
            self.is_shared &= wish.is_shared;
            let holder = &mut self.holders[at];
            holder.count += 1;
            holder.deadline = holder.deadline.max(wish.deadline);
            if let Some(data) = wish.data {
                holder.data = data.into();
            }
            return Some(holder);
        }
        let may_join = self.is_shared && wish.is_shared;
        if !self.holders.is_empty() && !may_join {
            return None;
        }
        self.is_shared = wish.is_shared;
        self.holders.push(Holder {
            owner: wish.owner.into(),
            token,
            count: 1,
            deadline: wish.deadline,
            data: wish.data.unwrap_or_default().into(),
        });
        self.holders.last()
    }

    /// Gives an owner's hold another deadline. The owner holds it.
    pub fn renew(&mut self, owner: &[u8], deadline: u64) {
        let holder = self.holders.iter_mut().find(|holder| *holder.owner == *owner);
        holder.expect("the caller found it").deadline = deadline;
    }

    /// Takes back one acquisition of an owner, who holds it. Gives how many are left.
    pub fn release(&mut self, owner: &[u8], now_ms: u64) -> u64 {
        self.holders.retain(|holder| holder.deadline >= now_ms);
        let at = self.holders.iter().position(|holder| *holder.owner == *owner);
        let at = at.expect("the caller found it");
        self.holders[at].count -= 1;
        let left = self.holders[at].count;
        if left == 0 {
            self.holders.remove(at);
        }
        left
    }
}

impl Kind for Lock {
    fn type_name(&self) -> &'static str {
        "lock"
    }

    fn encoding(&self) -> &'static str {
        "listpack"
    }

    fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    fn object(&self) -> Option<u64> {
        None
    }

    fn head_bytes(&self) -> usize {
        let holders = self.holders.iter();
        2 + holders.map(|holder| holder.owner.len() + holder.data.len() + 20).sum::<usize>()
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_shared));
        put_varint(out, self.holders.len() as u64);
        for holder in &self.holders {
            put_bytes(out, &holder.owner);
            put_varint(out, holder.token);
            put_varint(out, holder.count);
            put_varint(out, holder.deadline);
            put_bytes(out, &holder.data);
        }
    }

    fn has_part(&self, _: u64) -> bool {
        false
    }

    fn encode_part(&self, _: u64) -> Option<Vec<u8>> {
        None
    }

    fn load_part(&mut self, _: u64, _: &[u8]) -> Result<(), String> {
        Err("a lock has no pages".into())
    }

    fn loaded(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn remove_pages(&self, _: &mut Dirty) {}

    fn digest(&self, digest: &mut Digest) {
        let mut head = Vec::new();
        self.encode_head(&mut head);
        digest.bytes(&head);
    }

    fn copy(&self, _: &mut Pages<'_>) -> Value {
        Value::Lock(self.clone())
    }
}

impl Lock {
    /// Reads what `encode_head` wrote.
    pub fn decode_head(input: &mut Input<'_>) -> Result<Lock, String> {
        let is_shared = match input.byte()? {
            0 => false,
            1 => true,
            other => return Err(format!("a lock of mode {other}")),
        };
        let mut lock = Lock { is_shared, holders: Vec::new() };
        for _ in 0..input.size()? {
            lock.holders.push(Holder {
                owner: input.bytes()?.into(),
                token: input.varint()?,
                count: input.varint()?,
                deadline: input.varint()?,
                data: input.bytes()?.into(),
            });
        }
        if lock.holders.is_empty() || lock.holders.iter().any(|holder| holder.count == 0) {
            return Err("a lock that nobody holds".into());
        }
        Ok(lock)
    }
}

impl Typed for Lock {
    fn of(value: &Value) -> Option<&Self> {
        match value {
            Value::Lock(lock) => Some(lock),
            _ => None,
        }
    }

    fn of_mut(value: &mut Value) -> Option<&mut Self> {
        match value {
            Value::Lock(lock) => Some(lock),
            _ => None,
        }
    }

    fn into_value(self) -> Value {
        Value::Lock(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Input, Kind, Lock, Wish};

    /// Random owners against a model: nobody holds with whom he may not, tokens rise, holds end on time.
    #[test]
    fn random_owners_exclude_each_other() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut lock = Lock::default();
        // Owner to (shared, token, count, deadline).
        let mut model: BTreeMap<u8, (bool, u64, u64, u64)> = BTreeMap::new();
        let (mut now, mut token) = (1_000, 0);
        for _ in 0..20_000 {
            now += chance.u64(..10);
            model.retain(|_, (.., deadline)| *deadline >= now);
            let owner = chance.u8(..5);
            if chance.u8(..3) > 0 {
                let (is_shared, deadline) = (chance.bool(), now + chance.u64(..40));
                let wish = Wish { owner: &[owner], is_shared, deadline, data: None };
                let others_allow = model
                    .iter()
                    .filter(|(other, _)| **other != owner)
                    .all(|(_, (shared, ..))| *shared && is_shared);
                let holder = lock.acquire(wish, token + 1, now);
                let allowed = match model.get(&owner) {
                    // An exclusive holder may ask for less.
                    Some((false, ..)) => true,
                    _ => others_allow,
                };
                assert_eq!(holder.is_some(), allowed);
                let Some(holder) = holder else { continue };
                let hold = model.entry(owner).or_insert((is_shared, token + 1, 0, deadline));
                token = token.max(hold.1);
                *hold = (hold.0 && is_shared, hold.1, hold.2 + 1, hold.3.max(deadline));
                assert_eq!((holder.token, holder.count, holder.deadline), (hold.1, hold.2, hold.3));
            } else if let Some(hold) = model.get_mut(&owner) {
                hold.2 -= 1;
                assert_eq!(lock.release(&[owner], now), hold.2);
                if hold.2 == 0 {
                    model.remove(&owner);
                }
            }
            assert!(lock.holders(now).count() == model.len());
            assert!(model.len() <= 1 || model.values().all(|(shared, ..)| *shared));
            if !lock.is_empty() {
                let mut out = Vec::new();
                lock.encode_head(&mut out);
                let again = Lock::decode_head(&mut Input::new(&out)).unwrap();
                assert_eq!((again.is_shared, &again.holders), (lock.is_shared, &lock.holders));
                assert!(Lock::decode_head(&mut Input::new(&out[..out.len() - 1])).is_err());
            }
        }
    }
}
