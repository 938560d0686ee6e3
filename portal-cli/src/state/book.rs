//! What a relay remembers: bindings and recent agents. Kept in memory, written when it has changed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use portal_core::identity::PublicKey;
use portal_core::{Binding, Kept, RelayEvent};
use serde::{Deserialize, Serialize};

use super::{StateDir, StateError};
use crate::files;

/// Agents that are remembered; the one heard of longest ago goes first.
const MAX_AGENTS: usize = 4096;

/// An agent and where it was, as it stands in `agents.json`: oldest news first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecentAgent {
    /// Its key.
    pub(crate) key: PublicKey,
    /// Its address.
    pub(crate) remote: SocketAddr,
}

/// See the module docs.
#[derive(Debug)]
pub(crate) struct Book {
    state: StateDir,
    names: BTreeMap<String, Binding>,
    ports: BTreeMap<u16, Binding>,
    agents: BTreeMap<PublicKey, (u64, SocketAddr)>,
    news: u64,
    bindings_changed: bool,
    agents_changed: bool,
}

/// Files to be written, away from the thread that moves bytes.
#[derive(Debug)]
pub(crate) struct Draft {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Book {
    pub(super) fn new(state: StateDir, bindings: Vec<Binding>, agents: Vec<RecentAgent>) -> Self {
        let mut book = Self {
            state,
            names: BTreeMap::new(),
            ports: BTreeMap::new(),
            agents: BTreeMap::new(),
            news: 0,
            bindings_changed: false,
            agents_changed: false,
        };
        for binding in bindings {
            book.bind(binding);
        }
        for agent in agents {
            book.agent_at(agent.key, agent.remote);
        }
        (book.bindings_changed, book.agents_changed) = (false, false);
        book
    }

    /// For the relay's start.
    pub(crate) fn bindings(&self) -> Vec<Binding> {
        self.names.values().chain(self.ports.values()).cloned().collect()
    }

    /// For the relay's start.
    pub(crate) fn recent(&self) -> Vec<(PublicKey, SocketAddr)> {
        self.agents.iter().map(|(&key, &(_, remote))| (key, remote)).collect()
    }

    /// Takes what is to be remembered of an event. Tells whether there is something to write.
    pub(crate) fn note(&mut self, event: &RelayEvent) -> bool {
        match event {
            RelayEvent::Bound(binding) => self.bind(binding.clone()),
            RelayEvent::AgentAt { key, remote } => self.agent_at(*key, *remote),
            _ => {}
        }
        self.bindings_changed || self.agents_changed
    }

    /// Whether there is something to be remembered of an event.
    pub(crate) fn concerns(event: &RelayEvent) -> bool {
        matches!(event, RelayEvent::Bound(_) | RelayEvent::AgentAt { .. })
    }

    /// Takes all that the relay itself knows, as if each was told just now. Tells whether there is something to write.
    pub(crate) fn adopt(&mut self, kept: Kept) -> bool {
        for binding in kept.bindings {
            let known = match &binding {
                Binding::Name { name, .. } => self.names.get(name),
                Binding::Port { port, .. } => self.ports.get(port),
            };
            if known != Some(&binding) {
                self.bind(binding);
            }
        }
        for (key, remote) in kept.recent {
            if self.agents.get(&key).is_none_or(|(_, known)| *known != remote) {
                self.agent_at(key, remote);
            }
        }
        self.bindings_changed || self.agents_changed
    }

    /// What has changed since the last time, ready to be written.
    pub(crate) fn draft(&mut self) -> Draft {
        let mut files = Vec::new();
        if std::mem::take(&mut self.bindings_changed) {
            files.push((self.state.file("bindings.json"), lines(&self.bindings())));
        }
        if std::mem::take(&mut self.agents_changed) {
            let mut agents: Vec<_> = self.agents.iter().collect();
            agents.sort_unstable_by_key(|(_, (news, _))| *news);
            let agents: Vec<_> = agents
                .into_iter()
                .map(|(&key, &(_, remote))| RecentAgent { key, remote })
                .collect();
            files.push((self.state.file("agents.json"), lines(&agents)));
        }
        Draft { files }
    }

    /// A draft could not be written: all of it is to be written again.
    pub(crate) fn not_written(&mut self) {
        (self.bindings_changed, self.agents_changed) = (true, true);
    }

    fn bind(&mut self, binding: Binding) {
        match &binding {
            Binding::Name { name, .. } => drop(self.names.insert(name.clone(), binding)),
            Binding::Port { port, .. } => drop(self.ports.insert(*port, binding)),
        }
        self.bindings_changed = true;
    }

    fn agent_at(&mut self, key: PublicKey, remote: SocketAddr) {
        self.news += 1;
        let before = self.agents.insert(key, (self.news, remote));
        if before.is_none()
            && self.agents.len() > MAX_AGENTS
            && let Some((&oldest, _)) = self.agents.iter().min_by_key(|(_, (news, _))| *news)
        {
            self.agents.remove(&oldest);
        }
        self.agents_changed = true;
    }
}

impl Draft {
    /// Writes the files. Waits for the disk.
    pub(crate) fn write(self) -> Result<(), StateError> {
        for (path, contents) in self.files {
            files::replace(&path, &contents).map_err(|source| StateError::Write { path, source })?;
        }
        Ok(())
    }
}

/// A JSON array with one element a line, so that people can read and mend it.
fn lines<T: Serialize>(elements: &[T]) -> Vec<u8> {
    let mut text = String::from("[");
    for (index, element) in elements.iter().enumerate() {
        text.push_str(if index == 0 { "\n" } else { ",\n" });
        text.push_str(&serde_json::to_string(element).unwrap_or_default());
    }
    text.push_str("\n]\n");
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn at(number: u32, port: u16) -> RelayEvent {
        RelayEvent::AgentAt {
            key: key(number),
            remote: ([192, 0, 2, 1], port).into(),
        }
    }

    #[test]
    fn it_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(directory.path())).unwrap();
        let mut book = state.book().unwrap();
        assert!(book.draft().files.is_empty());
        let port = |key| Binding::Port {
            port: 20000,
            key,
            service: "tcp://22 \"ä\"\n".into(),
        };
        let name = Binding::Name {
            name: "blog".into(),
            key: key(1),
        };
        for event in [
            RelayEvent::Bound(port(key(1))),
            RelayEvent::Bound(name.clone()),
            RelayEvent::Bound(port(key(2))),
            at(1, 1),
            at(2, 2),
            at(1, 3),
        ] {
            assert!(book.note(&event));
        }
        book.draft().write().unwrap();
        assert!(book.draft().files.is_empty(), "written once");

        let mut again = state.book().unwrap();
        assert_eq!(again.bindings(), [name, port(key(2))], "the port has changed hands");
        let mut recent = again.recent();
        recent.sort();
        let mut expected = vec![
            (key(1), ([192, 0, 2, 1], 3).into()),
            (key(2), ([192, 0, 2, 1], 2).into()),
        ];
        expected.sort();
        assert_eq!(recent, expected);
        assert!(again.draft().files.is_empty(), "nothing is new");
    }

    #[test]
    fn the_newest_agents_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(directory.path())).unwrap();
        let mut book = state.book().unwrap();
        let count = MAX_AGENTS as u32;
        for number in 0..count {
            book.note(&at(number, 1));
        }
        book.note(&at(0, 2));
        book.note(&at(count, 1));
        assert_eq!(book.recent().len(), MAX_AGENTS);
        assert!(book.agents.contains_key(&key(0)), "it was heard of again");
        assert!(!book.agents.contains_key(&key(1)));
    }

    #[test]
    fn what_was_not_told_is_adopted_and_nothing_else_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::locate(Some(directory.path())).unwrap();
        let mut book = state.book().unwrap();
        let name = |label: &str, number| Binding::Name {
            name: label.into(),
            key: key(number),
        };
        let port = |number| Binding::Port {
            port: 20000,
            key: key(number),
            service: "db".into(),
        };
        for event in [
            RelayEvent::Bound(name("blog", 1)),
            RelayEvent::Bound(port(1)),
            at(1, 1),
            at(2, 2),
        ] {
            assert!(Book::concerns(&event));
            book.note(&event);
        }
        book.draft().write().unwrap();
        let kept = |bindings, recent| Kept { bindings, recent };
        let remote = |port: u16| ([192, 0, 2, 1], port).into();
        let same = kept(vec![name("blog", 1), port(1)], vec![(key(1), remote(1))]);
        assert!(!book.adopt(same), "nothing new, and an agent that has gone is no news");

        let bindings = vec![name("blog", 1), name("shop", 3), port(3)];
        assert!(book.adopt(kept(bindings.clone(), vec![(key(1), remote(9)), (key(3), remote(3))])));
        book.draft().write().unwrap();
        let again = state.book().unwrap();
        assert_eq!(again.bindings(), bindings);
        let mut recent = again.recent();
        recent.sort();
        let mut expected = vec![(key(1), remote(9)), (key(2), remote(2)), (key(3), remote(3))];
        expected.sort();
        assert_eq!(recent, expected);
    }
}
