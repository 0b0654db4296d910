//! How fast locks are, on servers that run already; `deploy/bench/run.sh` starts them.
//!
//!   KVORUM=HOST:PORT [REDIS=HOST:PORT] [ETCD=HOST:PORT] cargo bench --bench coordination
//!
//! Prints a table. All rounds of one comparison alternate, and the figures are medians. KVORUM should be the leader, so
//! that it is compared with servers that forward nothing.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinSet,
};

const CLIENTS: usize = 50;
const ROUNDS: usize = 5;
/// How long one round of one workload takes.
const ROUND: Duration = Duration::from_secs(4);
/// How often a client of redis-server looks whether the lock is free.
const POLL: Duration = Duration::from_millis(10);

/// A connection, of either protocol.
struct Connection {
    stream: BufReader<TcpStream>,
    host: String,
}

impl Connection {
    async fn open(address: &str) -> Connection {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Connection { stream: BufReader::new(stream), host: address.to_owned() }
    }

    /// A Redis command. Gives all lines of the reply, joined: none of those used here is binary.
    async fn call(&mut self, argv: &[&str]) -> String {
        let mut request = format!("*{}\r\n", argv.len());
        for argument in argv {
            request += &format!("${}\r\n{argument}\r\n", argument.len());
        }
        self.stream.get_mut().write_all(request.as_bytes()).await.unwrap();
        let (mut reply, mut lines) = (String::new(), 1);
        while lines > 0 {
            let mut line = String::new();
            self.stream.read_line(&mut line).await.unwrap();
            lines -= 1;
            match line.as_bytes()[0] {
                b'*' => lines += line[1..].trim().parse::<i64>().unwrap().max(0),
                b'$' if !line.starts_with("$-") => lines += 1,
                _ => {}
            }
            reply += &line;
        }
        reply
    }

    /// A request to etcd's JSON gateway.
    async fn post(&mut self, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes()).await.unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).await.unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await.unwrap();
        serde_json::from_slice(&answer).unwrap()
    }
}

/// The token in what a grant answers.
fn token(reply: &str) -> String {
    let line = reply.lines().find(|line| line.starts_with(':'));
    line.unwrap_or_else(|| panic!("not granted: {reply}"))[1..].to_owned()
}

/// Runs `client` for each of the clients until the round is over; gives how often one of them did its work, a second.
async fn rate<F: Future<Output = ()> + Send + 'static>(
    client: impl Fn(usize, Arc<AtomicU64>, Instant) -> F,
) -> f64 {
    let done = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(client(number, done.clone(), started + ROUND));
    }
    clients.join_all().await;
    done.load(Relaxed) as f64 / started.elapsed().as_secs_f64()
}

async fn two_sets(address: &str) -> f64 {
    rate(|number, done, end| {
        let address = address.to_owned();
        async move {
            let mut connection = Connection::open(&address).await;
            let key = format!("bench:{number}");
            while Instant::now() < end {
                connection.call(&["SET", &key, "owner"]).await;
                connection.call(&["SET", &key, "nobody"]).await;
                done.fetch_add(1, Relaxed);
            }
        }
    })
    .await
}

async fn acquire_and_release(address: &str) -> f64 {
    rate(|number, done, end| {
        let address = address.to_owned();
        async move {
            let mut connection = Connection::open(&address).await;
            let lock = format!("bench:lock:{number}");
            while Instant::now() < end {
                let granted = connection.call(&["LOCK.ACQUIRE", &lock, "owner", "PX", "60000"]).await;
                connection.call(&["LOCK.RELEASE", &lock, "owner", &token(&granted)]).await;
                done.fetch_add(1, Relaxed);
            }
        }
    })
    .await
}

/// A queue of all clients, each of which releases when its turn comes: hand-overs a second.
async fn hand_over(address: &str) -> f64 {
    let started = Instant::now();
    let (mut busy, mut count) = (Duration::ZERO, 0);
    let mut watcher = Connection::open(address).await;
    while started.elapsed() < ROUND {
        let first = watcher.call(&["LOCK.ACQUIRE", "bench:queue", "first", "PX", "60000"]).await;
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let address = address.to_owned();
            clients.spawn(async move {
                let mut connection = Connection::open(&address).await;
                let owner = format!("owner:{number}");
                let ask = ["LOCK.ACQUIRE", "bench:queue", &owner, "PX", "60000", "WAIT", "60000"];
                let granted = connection.call(&ask).await;
                connection.call(&["LOCK.RELEASE", "bench:queue", &owner, &token(&granted)]).await;
            });
        }
        while watcher.call(&["LOCK.INFO", "bench:queue"]).await.matches("owner:").count() < CLIENTS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let begun = Instant::now();
        watcher.call(&["LOCK.RELEASE", "bench:queue", "first", &token(&first)]).await;
        clients.join_all().await;
        busy += begun.elapsed();
        count += CLIENTS;
    }
    count as f64 / busy.as_secs_f64()
}

/// One lock, from waiter to waiter; each asks again at once.
async fn hand_over_for_ever(address: &str) -> f64 {
    rate(|number, done, end| {
        let address = address.to_owned();
        async move {
            let mut connection = Connection::open(&address).await;
            let owner = format!("owner:{number}");
            while Instant::now() < end {
                let ask = ["LOCK.ACQUIRE", "bench:one", &owner, "PX", "60000", "WAIT", "60000"];
                let granted = connection.call(&ask).await;
                connection.call(&["LOCK.RELEASE", "bench:one", &owner, &token(&granted)]).await;
                done.fetch_add(1, Relaxed);
            }
        }
    })
    .await
}

/// The same with SET NX, a poll every 10 ms and a compare-and-delete.
async fn hand_over_by_polling(address: &str) -> f64 {
    const RELEASE: &str =
        "if redis.call('GET',KEYS[1])==ARGV[1] then return redis.call('DEL',KEYS[1]) end return 0";
    rate(|number, done, end| {
        let address = address.to_owned();
        async move {
            let mut connection = Connection::open(&address).await;
            let owner = format!("owner:{number}");
            while Instant::now() < end {
                let ask = ["SET", "bench:one", &owner, "NX", "PX", "60000"];
                if !connection.call(&ask).await.starts_with('+') {
                    tokio::time::sleep(POLL).await;
                    continue;
                }
                connection.call(&["EVAL", RELEASE, "1", "bench:one", &owner]).await;
                done.fetch_add(1, Relaxed);
            }
        }
    })
    .await
}

/// etcd's lock through its JSON gateway; `name` says which lock a client wants (base64).
async fn etcd(address: &str, name: impl Fn(usize) -> &'static str) -> f64 {
    let names: Vec<&'static str> = (0..CLIENTS).map(name).collect();
    rate(|number, done, end| {
        let (address, name) = (address.to_owned(), names[number]);
        async move {
            let mut connection = Connection::open(&address).await;
            let lease = connection.post("/v3/lease/grant", &json!({ "TTL": 60 })).await;
            while Instant::now() < end {
                let granted =
                    connection.post("/v3/lock/lock", &json!({ "name": name, "lease": lease["ID"] })).await;
                connection.post("/v3/lock/unlock", &json!({ "key": granted["key"] })).await;
                done.fetch_add(1, Relaxed);
            }
        }
    })
    .await
}

/// One client, one durable write after the other: how many a second.
async fn one_after_the_other(address: &str) -> f64 {
    let mut connection = Connection::open(address).await;
    let (started, mut count) = (Instant::now(), 0);
    while started.elapsed() < ROUND {
        connection.call(&["SET", "bench:alone", "value"]).await;
        count += 1;
    }
    f64::from(count) / started.elapsed().as_secs_f64()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Names of 50 locks for etcd, in base64, all different.
fn own_lock(number: usize) -> &'static str {
    const NAMES: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let at = number % NAMES.len();
    // A letter alone is no base64: three letters before it make a group of four.
    Box::leak(format!("bG9j{}2Fh", &NAMES[at..=at]).into_boxed_str())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // `cargo bench` and `cargo test` pass flags of their own; there is nothing to choose.
    let Ok(kvorum) = env::var("KVORUM") else {
        println!("KVORUM=HOST:PORT names the server to measure; deploy/bench/run.sh starts one");
        return;
    };
    let [mut sets, mut locks, mut writes, mut hands, mut rounds] = [const { Vec::new() }; 5];
    for _ in 0..ROUNDS {
        sets.push(two_sets(&kvorum).await);
        locks.push(acquire_and_release(&kvorum).await);
        writes.push(one_after_the_other(&kvorum).await);
        hands.push(hand_over(&kvorum).await);
        rounds.push(hand_over_for_ever(&kvorum).await);
    }
    let (sets, locks) = (median(sets), median(locks));
    let [write_us, hand_us, round_us] = [writes, hands, rounds].map(|rates| 1e6 / median(rates));
    println!("{CLIENTS} clients, {ROUNDS} rounds of {} s, medians", ROUND.as_secs());
    println!("two SETs                                  {sets:>10.0} /s");
    println!("LOCK.ACQUIRE and LOCK.RELEASE, own locks   {locks:>10.0} /s  {:.2} x two SETs", locks / sets);
    println!("one SET after the other, one client        {write_us:>10.0} us");
    println!(
        "hand-over of one lock to the next waiter   {hand_us:>10.0} us  {:.2} x one SET",
        hand_us / write_us
    );
    println!(
        "the same while 49 others ask again          {round_us:>10.0} us  {:.2} x one SET",
        round_us / write_us
    );
    if let Ok(redis) = env::var("REDIS") {
        let polled = 1e6 / hand_over_by_polling(&redis).await;
        println!(
            "redis-server, SET NX polled every 10 ms    {polled:>10.0} us  {:.2} x that",
            polled / round_us
        );
    }
    if let Ok(address) = env::var("ETCD") {
        let own = etcd(&address, own_lock).await;
        println!("etcd, one node, lock and unlock, own locks {own:>10.0} /s  {:.2} x Kvorum", own / locks);
        let one = 1e6 / etcd(&address, |_| "b25l").await;
        println!("etcd, one node, hand-over of one lock      {one:>10.0} us  {:.2} x that", one / round_us);
    }
}
