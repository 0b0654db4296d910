//! The tasks that make up a node. All of them run for as long as it does: a node without one of them would
//! look alive and serve nobody, so none may end unnoticed.

use std::future::Future;

use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};

use crate::fatal;

/// Tasks by name.
#[derive(Default)]
pub(crate) struct Supervised {
    tasks: JoinSet<&'static str>,
}

impl Supervised {
    /// Starts a task that ends only when it is stopped.
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until `stop` becomes true, and ends all tasks. A task that ends before that is fatal.
    pub(crate) async fn watch(mut self, mut stop: watch::Receiver<bool>, fatal: fatal::Handler) {
        let ended = tokio::select! {
            biased;
            // The sender going away means that the node is gone.
            _ = stop.wait_for(|stop| *stop) => None,
            ended = self.tasks.join_next() => ended,
        };
        // A node that is being stopped ends its tasks in any order.
        if let Some(ended) = ended
            && !*stop.borrow()
        {
            fatal(end_of(ended));
        }
        self.tasks.shutdown().await;
    }
}

fn end_of(ended: Result<&'static str, JoinError>) -> String {
    match ended {
        Ok(name) => format!("the task for {name} has ended"),
        Err(error) => format!("a task of this node has ended: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::sync::watch;

    use super::Supervised;

    async fn told(stop_first: bool, task: impl Future<Output = ()> + Send + 'static) -> Vec<String> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = told.clone();
        let stop = watch::Sender::new(stop_first);
        let mut tasks = Supervised::default();
        tasks.spawn("naps", std::future::pending());
        tasks.spawn("dreams", task);
        tasks.watch(stop.subscribe(), Arc::new(move |why| telling.lock().push(why))).await;
        told.lock().clone()
    }

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_fatal_unless_the_node_stops() {
        assert_eq!(told(false, async {}).await, ["the task for dreams has ended"]);
        let panicked = told(false, async { panic!("a broken invariant") }).await;
        assert!(panicked[0].contains("a broken invariant"), "{panicked:?}");
        assert!(told(true, std::future::pending()).await.is_empty());
    }
}
