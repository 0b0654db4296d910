//! What happens when sled panics: the panic is reported before it unwinds.
//!
//! Nobody must wait for the end of the unwinding: after a failed open, sled waits, while it unwinds, for a
//! thread that it has not started yet. Our thread then hangs for ever and leaks what it holds. This does
//! little harm: its directory can be renamed, and another opened in its place.

use std::{cell::RefCell, panic, sync::Once};

type Report = Box<dyn FnOnce(String)>;

thread_local! {
    static REPORT: RefCell<Option<Report>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// From here on the first panic on this thread is reported as it begins. Other threads are not affected.
pub(super) fn report_first(report: impl FnOnce(String) + 'static) {
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            previous(panic);
            let report = REPORT.try_with(|report| report.borrow_mut().take()).ok().flatten();
            if let Some(report) = report {
                report(panic.to_string());
            }
        }));
    });
    REPORT.set(Some(Box::new(report)));
}
