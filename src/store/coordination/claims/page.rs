//! Claims as the value of a key: their serialized form, which is stored in the key's page.

use crate::store::{
    claims::{Claims, Leader},
    codec::{Input, put_bytes, put_varint},
    object::{Kind, Pages, Typed, Value},
    owner::{ClaimKind, FIXED_BYTES, Holder, Share, Span, Until, Waiter},
    waits::Ticket,
};

/// What a holder or a waiter costs in memory besides its serialized form.
const CLAIM_BYTES: usize = 640;

impl Kind for Claims {
    fn type_name(&self) -> &'static str {
        match self.kind {
            ClaimKind::Lock => "lock",
            ClaimKind::Semaphore => "semaphore",
            ClaimKind::Election => "election",
        }
    }

    fn encoding(&self) -> &'static str {
        "listpack"
    }

    fn is_empty(&self) -> bool {
        self.is_idle()
    }

    fn head_bytes(&self) -> usize {
        self.bytes() + 8
    }

    fn dependents(&self) -> usize {
        self.holders.len() + self.queue.len()
    }

    fn more_bytes(&self) -> usize {
        (self.holders.len() + self.queue.len()) * CLAIM_BYTES
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        put_varint(out, self.total);
        put_varint(out, self.closed_until);
        put_varint(out, self.holders.len() as u64);
        for holder in self.holders.iter() {
            put_bytes(out, &holder.owner);
            put_varint(out, holder.token);
            put_varint(out, holder.count);
            put_share(out, holder.share);
            match &holder.until {
                Until::At(deadline) => put_time(out, Ok(*deadline)),
                Until::Lease(id) => put_time(out, Err(id)),
            }
            put_varint(out, holder.delay_ms);
            put_ticket(out, holder.ticket);
            put_bytes(out, &holder.data);
        }
        put_varint(out, self.queue.len() as u64);
        for waiter in self.queue.iter() {
            put_bytes(out, &waiter.owner);
            put_share(out, waiter.share);
            match &waiter.span {
                Span::Ms(ms) => put_time(out, Ok(*ms)),
                Span::Lease(id) => put_time(out, Err(id)),
            }
            put_varint(out, waiter.delay_ms);
            put_ticket(out, Some(waiter.ticket));
            put_varint(out, waiter.deadline);
            out.push(u8::from(waiter.is_absent));
            put_bytes(out, &waiter.data);
        }
        put_varint(out, self.guards.len() as u64);
        self.guards.iter().for_each(|key| put_bytes(out, key));
    }

    fn copy(&self, _: &mut Pages<'_>) -> Value {
        self.clone().into_value()
    }

    fn keeps_its_time(&self) -> bool {
        true
    }
}

/// 0 means all of it.
fn put_share(out: &mut Vec<u8>, share: Share) {
    put_varint(
        out,
        match share {
            Share::All => 0,
            Share::Permits(count) => count,
        },
    );
}

fn share(input: &mut Input<'_>) -> Result<Share, String> {
    Ok(match input.varint()? {
        0 => Share::All,
        count => Share::Permits(count),
    })
}

/// A number of milliseconds, or a lease.
fn put_time(out: &mut Vec<u8>, time: Result<u64, &[u8]>) {
    match time {
        Ok(ms) => {
            out.push(0);
            put_varint(out, ms);
        }
        Err(lease) => {
            out.push(1);
            put_bytes(out, lease);
        }
    }
}

fn time<'a>(input: &mut Input<'a>) -> Result<Result<u64, &'a [u8]>, String> {
    match input.byte()? {
        0 => input.varint().map(Ok),
        1 => input.bytes().map(Err),
        other => Err(format!("a time of form {other}")),
    }
}

fn put_ticket(out: &mut Vec<u8>, ticket: Option<Ticket>) {
    out.push(u8::from(ticket.is_some()));
    if let Some(ticket) = ticket {
        ticket.encode(out);
    }
}

fn ticket(input: &mut Input<'_>) -> Result<Option<Ticket>, String> {
    match input.byte()? {
        0 => Ok(None),
        1 => Ticket::decode(input).map(Some),
        other => Err(format!("a ticket of form {other}")),
    }
}

impl<'a> Leader<'a> {
    /// Appends its serialized form; without the value if that is longer than `value_bytes_max`.
    pub(in crate::store) fn encode(&self, value_bytes_max: usize, out: &mut Vec<u8>) {
        put_bytes(out, self.candidate);
        put_varint(out, self.epoch);
        let value = self.value.filter(|value| value.len() <= value_bytes_max);
        out.push(u8::from(value.is_some()));
        put_bytes(out, value.unwrap_or_default());
    }

    /// Reads what `encode` wrote.
    pub(in crate::store) fn decode(input: &mut Input<'a>) -> Result<Leader<'a>, String> {
        let (candidate, epoch) = (input.bytes()?, input.varint()?);
        let has_value = input.byte()? != 0;
        let value = input.bytes()?;
        Ok(Leader { candidate, epoch, value: has_value.then_some(value) })
    }
}

impl Claims {
    /// Reads what `encode_head` wrote.
    pub fn decode_head(kind: ClaimKind, input: &mut Input<'_>) -> Result<Claims, String> {
        let mut claims = Claims::new(kind);
        (claims.total, claims.closed_until) = (input.varint()?, input.varint()?);
        for _ in 0..input.size()? {
            let holder = Holder {
                owner: input.bytes()?.into(),
                token: input.varint()?,
                count: input.varint()?,
                share: share(input)?,
                until: match time(input)? {
                    Ok(deadline) => Until::At(deadline),
                    Err(id) => Until::Lease(id.into()),
                },
                delay_ms: input.varint()?,
                ticket: ticket(input)?,
                data: input.bytes()?.into(),
            };
            if holder.count == 0 || claims.holders.last_place().is_some_and(|last| last >= holder.token) {
                return Err("holders without a hold, or not in the order of their tokens".into());
            }
            claims.check_new(&holder.owner)?;
            claims.add_holder(holder);
        }
        for _ in 0..input.size()? {
            let waiter = Waiter {
                owner: input.bytes()?.into(),
                share: share(input)?,
                span: match time(input)? {
                    Ok(ms) => Span::Ms(ms),
                    Err(id) => Span::Lease(id.into()),
                },
                delay_ms: input.varint()?,
                ticket: ticket(input)?.ok_or("a wait without a ticket")?,
                deadline: input.varint()?,
                is_absent: input.byte()? != 0,
                data: input.bytes()?.into(),
            };
            claims.check_new(&waiter.owner)?;
            claims.add_waiter(waiter);
        }
        for _ in 0..input.size()? {
            let key = input.bytes()?;
            claims.guards_bytes += if claims.guards.insert(key.into()) { key.len() + FIXED_BYTES } else { 0 };
        }
        if claims.is_idle() {
            return Err("claims that nobody has".into());
        }
        claims.measure();
        claims.begin();
        Ok(claims)
    }

    fn check_new(&self, owner: &[u8]) -> Result<(), String> {
        let is_new = self.holders.find(owner).is_none() && self.queue.find(owner).is_none();
        if is_new { Ok(()) } else { Err("an owner that claims twice".into()) }
    }
}

impl Typed for Claims {
    fn of(value: &Value) -> Option<&Self> {
        match value {
            Value::Claims(claims) => Some(claims),
            _ => None,
        }
    }

    fn of_mut(value: &mut Value) -> Option<&mut Self> {
        match value {
            Value::Claims(claims) => Some(claims),
            _ => None,
        }
    }

    fn into_value(self) -> Value {
        Value::Claims(Box::new(self))
    }
}
