//! Which call of a tool made a task, as answers of servers say (MCP 2025-11-25, Tasks).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The most tasks that are known. Who was not asked for the longest is forgotten first.
const MOST: usize = 4096;
/// The longest id that is known, in bytes.
const LONGEST_ID: usize = 1024;

/// The tasks of servers, each with the tool that made it. A task that is not known belongs to no call that was let through.
#[derive(Debug, Default)]
pub struct TaskBook(Mutex<KnownTasks>);

#[derive(Debug, Default)]
struct KnownTasks {
    tasks: HashMap<Arc<TaskKey>, KnownTask>,
    /// The tasks by when they were last asked for.
    order: BTreeMap<u64, Arc<TaskKey>>,
    /// How often one was learned or asked for.
    uses: u64,
}

/// A task, by its server and its id.
type TaskKey = (Box<str>, Box<str>);

#[derive(Debug)]
struct KnownTask {
    tool: Arc<str>,
    used: u64,
}

impl TaskBook {
    /// Remembers that a call of this tool has made a task, if the id is no longer than is kept. Another tool of the same task is
    /// forgotten.
    pub fn learn(&self, server: &str, task: &str, tool: &str) {
        if task.len() > LONGEST_ID {
            return;
        }
        let (key, mut known) = (Arc::new((server.into(), task.into())), self.lock());
        known.uses += 1;
        let used = known.uses;
        if let Some(before) = known.tasks.insert(Arc::clone(&key), KnownTask { tool: tool.into(), used }) {
            known.order.remove(&before.used);
        }
        known.order.insert(used, key);
        if known.tasks.len() > MOST
            && let Some((_, oldest)) = known.order.pop_first()
        {
            known.tasks.remove(&oldest);
        }
    }

    /// Returns the tool that made a task; none where that is not known.
    pub fn find(&self, server: &str, task: &str) -> Option<Arc<str>> {
        if task.len() > LONGEST_ID {
            return None;
        }
        let (key, mut known) = ((server.into(), task.into()), self.lock());
        let KnownTasks { tasks, order, uses } = &mut *known;
        let found = tasks.get_mut(&key)?;
        *uses += 1;
        if let Some(key) = order.remove(&found.used) {
            order.insert(*uses, key);
        }
        found.used = *uses;
        Some(Arc::clone(&found.tool))
    }

    fn lock(&self) -> MutexGuard<'_, KnownTasks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_known_on_its_own_server_alone() {
        let book = TaskBook::default();
        book.learn("bank", "t", "pay");
        book.learn("shop", "t", "order");
        assert_eq!(book.find("bank", "t").as_deref(), Some("pay"));
        assert_eq!(book.find("shop", "t").as_deref(), Some("order"));
        assert_eq!((book.find("mail", "t"), book.find("bank", "u")), (None, None));
        book.learn("bank", "t", "refund");
        assert_eq!(book.find("bank", "t").as_deref(), Some("refund"));
        let long = "x".repeat(LONGEST_ID + 1);
        book.learn("bank", &long, "pay");
        assert_eq!(book.find("bank", &long), None);
        book.learn("bank", &long[1..], "pay");
        assert_eq!(book.find("bank", &long[1..]).as_deref(), Some("pay"));
    }

    #[test]
    fn tasks_are_bounded_in_number_and_the_one_that_was_not_asked_for_the_longest_goes() {
        let book = TaskBook::default();
        for number in 0..MOST {
            book.learn("bank", &number.to_string(), "pay");
        }
        assert!(book.find("bank", "0").is_some());
        book.learn("bank", "1", "pay");
        for number in MOST..MOST + 2 {
            book.learn("bank", &number.to_string(), "pay");
        }
        let known = |number: usize| book.find("bank", &number.to_string()).is_some();
        assert_eq!([0, 1, 2, 3, 4, MOST, MOST + 1].map(known), [true, true, false, false, true, true, true]);
        let known = book.lock();
        assert_eq!((known.tasks.len(), known.order.len()), (MOST, MOST));
    }
}
