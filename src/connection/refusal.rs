//! The errors for commands that there are not, as Redis words them: they quote what the client has sent, which need not be
//! text.

use super::table::Row;
use crate::resp::Reply;

/// An error whose text may not be UTF-8.
pub(super) fn error_line(reply: &mut Reply, text: &[u8]) {
    let one_line = text.iter().map(|&byte| if byte == b'\r' || byte == b'\n' { b' ' } else { byte });
    let line: Vec<u8> = b"-".iter().copied().chain(one_line).chain(*b"\r\n").collect();
    reply.raw(&line);
}

/// Truncates text for an error message as Redis does: at `max` bytes, and at the first NUL.
fn quoted(text: &[u8], max: usize) -> &[u8] {
    let text = &text[..text.len().min(max)];
    &text[..text.iter().position(|&byte| byte == 0).unwrap_or(text.len())]
}

/// The error for a command that there is not, as Redis words it.
pub(super) fn unknown_command(argv: &[&[u8]]) -> Vec<u8> {
    let mut shown = Vec::new();
    for argument in &argv[1..] {
        if shown.len() >= 128 {
            break;
        }
        let room = 128 - shown.len();
        shown.push(b'\'');
        shown.extend_from_slice(quoted(argument, room));
        shown.extend_from_slice(b"' ");
    }
    [b"ERR unknown command '", quoted(argv[0], 128), b"', with args beginning with: ", &shown].concat()
}

/// The error for a subcommand that there is not.
pub(super) fn unknown_subcommand(container: &Row, name: &[u8]) -> Vec<u8> {
    let help = format!("'. Try {} HELP.", container.spec.name);
    [b"ERR unknown subcommand '", quoted(name, 128), help.as_bytes()].concat()
}
