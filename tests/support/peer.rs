//! The peer protocol as somebody writes it who has only read about it: a greeting, and frames with anything in them.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

pub const HELLO: u8 = 1;
pub const APPEND: u8 = 4;
pub const VOTE: u8 = 5;
pub const PRE_VOTE: u8 = 6;
pub const REPORT: u8 = 17;

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct Greeting {
    pub cluster: String,
    pub id: u64,
    pub to: u64,
    pub disk: String,
    pub clock_ms: u64,
    pub former: Vec<String>,
    pub apply_level: u32,
    /// What its log and vote are said to have.
    pub term: u64,
    pub index: u64,
    pub address: String,
    pub went_back: String,
}

/// An answer to a greeting.
pub struct Answer {
    pub bytes: Vec<u8>,
    pub cluster: String,
    pub id: u64,
    pub disk: String,
    pub refusal: String,
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u32::try_from(text.len()).unwrap().to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

pub fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(13 + body.len()).unwrap().to_le_bytes().to_vec();
    out.push(kind);
    out.extend_from_slice(&[0; 12]);
    out.extend_from_slice(body);
    out
}

impl Greeting {
    pub fn new(id: u64, to: u64, cluster: &str) -> Greeting {
        Greeting {
            cluster: cluster.into(),
            id,
            to,
            disk: "0123456789abcdef0123456789abcdef".into(),
            clock_ms: 1 << 60,
            former: Vec::new(),
            apply_level: 1,
            term: 1 << 60,
            index: 1 << 60,
            address: "192.0.2.1:1".into(),
            went_back: String::new(),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = b"KVPN".to_vec();
        out.extend_from_slice(&4_u32.to_le_bytes());
        put_str(&mut out, &self.cluster);
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.to.to_le_bytes());
        put_str(&mut out, &self.disk);
        out.push(1);
        out.extend_from_slice(&self.clock_ms.to_le_bytes());
        put_str(&mut out, "");
        out.extend_from_slice(&(self.former.len() as u32).to_le_bytes());
        self.former.iter().for_each(|cluster| put_str(&mut out, cluster));
        out.extend_from_slice(&3_u32.to_le_bytes());
        out.push(1);
        out.extend_from_slice(&0_u32.to_le_bytes());
        out.extend_from_slice(&self.apply_level.to_le_bytes());
        out.extend_from_slice(&1000_u32.to_le_bytes());
        // One life of its disk, its process, and what it began with.
        out.extend_from_slice(&1_u64.to_le_bytes());
        out.extend_from_slice(&1_u32.to_le_bytes());
        out.extend_from_slice(&7_u64.to_le_bytes());
        out.extend_from_slice(&9_u64.to_le_bytes());
        out.push(1);
        for number in [self.term, self.index, self.term] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_str(&mut out, &self.address);
        put_str(&mut out, &self.went_back);
        frame(HELLO, &out)
    }
}

/// Reads one frame: its kind and its body.
pub fn read(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 17];
    stream.read_exact(&mut head)?;
    let len = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
    let mut body = vec![0; len - 13];
    stream.read_exact(&mut body)?;
    Ok((head[4], body))
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(len);
    *bytes = rest;
    taken
}

fn take_str(bytes: &mut &[u8]) -> String {
    let len = u32::from_le_bytes(take(bytes, 4).try_into().unwrap()) as usize;
    String::from_utf8(take(bytes, len).to_vec()).unwrap()
}

/// Connects and greets; gives the connection and the answer.
pub fn greet(address: &str, greeting: &Greeting) -> io::Result<(TcpStream, Answer)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&greeting.encode())?;
    let (kind, body) = read(&mut stream)?;
    assert_eq!(kind, HELLO);
    let mut rest = &body[8..];
    let cluster = take_str(&mut rest);
    let id = u64::from_le_bytes(take(&mut rest, 8).try_into().unwrap());
    take(&mut rest, 8);
    let disk = take_str(&mut rest);
    take(&mut rest, 9);
    let refusal = take_str(&mut rest);
    Ok((stream, Answer { bytes: body, cluster, id, disk, refusal }))
}

/// A request for a vote, or a pre-vote, of this term for this node.
pub fn vote(kind: u8, term: u64, id: u64) -> Vec<u8> {
    let mut out = term.to_le_bytes().to_vec();
    out.extend_from_slice(&id.to_le_bytes());
    // Not a leader's; of a log that is empty; and the node is to be elected whoever leads.
    out.extend_from_slice(&[0, 0, 1]);
    frame(kind, &out)
}

/// A heartbeat of a leader of this term.
pub fn heartbeat(term: u64, id: u64) -> Vec<u8> {
    let mut out = term.to_le_bytes().to_vec();
    out.extend_from_slice(&id.to_le_bytes());
    // A leader's vote, without an entry before, without a commit, and without entries.
    out.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0]);
    frame(APPEND, &out)
}
