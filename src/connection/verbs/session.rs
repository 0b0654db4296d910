//! CLIENT SESSION: puts a connection into an exactly-once session, in which ONCE applies commands once. Each
//! of the connection's proposals carries the session's id.

use kvorum_raft::Need;

use crate::connection::Connection;
use crate::{
    args::Args,
    error::Error,
    proposal,
    resp::{Protocol, Reply},
};

/// The longest id of a session: each proposal of the connection carries it.
const ID_BYTES_MAX: usize = 1024;
const SESSION_ID_TOO_LONG: &str = "the id of a session has at most 1024 bytes";

impl Connection {
    /// CLIENT SESSION [id [NEW [PX ms]]].
    pub(in crate::connection) async fn client_session(&mut self, argv: &[&[u8]]) {
        let args = Args::new(argv);
        if args.len() == 2 {
            let id = self.in_session.as_ref().map(|(_, id)| id.clone());
            return self.reply(|reply| reply.bulk_or_null(id.as_deref()));
        }
        let is_new = args.is(3, "NEW");
        if args.len() > 3 && !is_new {
            return self.reply(|reply| reply.error(&Error::Syntax));
        }
        let (db, id) = (self.db, args.at(2));
        if id.len() > ID_BYTES_MAX {
            return self.reply(|reply| reply.error(&Error::err(SESSION_ID_TOO_LONG)));
        }
        let call = if is_new {
            [&[b"SESSION.OPEN".as_slice(), id], args.from(4)].concat()
        } else {
            vec![b"SESSION.RENEW".as_slice(), id]
        };
        let need = if is_new { Need::Growth } else { Need::Entry };
        if let Err(error) = self.shared.router.check_room(need, id.len()) {
            return self.reply(|reply| reply.error(&error));
        }
        let mut bytes = Vec::new();
        proposal::put_call(&mut bytes, db, &call);
        let answer = self.shared.router.call(&bytes, 1, Protocol::Resp2).await;
        if answer.starts_with(b"-") {
            return self.out.extend_from_slice(&answer);
        }
        self.in_session = Some((db, id.to_vec()));
        self.reply(Reply::ok);
    }
}
