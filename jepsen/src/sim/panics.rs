//! Panics of nodes, which tokio catches.

use std::{cell::RefCell, sync::Once};

thread_local! {
    static HAPPENED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Collects panics on this thread from now on.
pub(super) fn watch() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_kept = HAPPENED.with_borrow_mut(|happened| {
                happened.as_mut().map(|happened| happened.push(panic.to_string())).is_some()
            });
            if !is_kept {
                usual(panic);
            }
        }));
    });
    HAPPENED.set(Some(Vec::new()));
}

/// The panics since the last call.
pub(super) fn take() -> Vec<String> {
    HAPPENED.with_borrow_mut(|happened| happened.as_mut().map(std::mem::take).unwrap_or_default())
}
