//! A file system in memory, as harsh as POSIX allows.
//!
//! Fault model: what was written to a file since its last sync is there, or not, or as a torn prefix followed by zeros, each
//! file by itself. What happened to names since the last sync of the folder (made, renamed, removed) is there or not, each
//! change by itself and not only as a prefix of their order. A sync makes durable what was there before it.

use super::cut::{Dice, Power};
use keystore::{Error, Files};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Error as IoError, ErrorKind};
use std::rc::Rc;

#[derive(Clone, Default)]
struct Inode {
    durable: Vec<u8>,
    content: Vec<u8>,
}

#[derive(Clone)]
enum Change {
    Link(String, usize),
    Move(String, String, usize),
    Unlink(String),
}

#[derive(Clone, Default)]
struct State {
    inodes: Vec<Inode>,
    durable_names: BTreeMap<String, usize>,
    names: BTreeMap<String, usize>,
    changes: Vec<Change>,
}

/// The disk; clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    state: Rc<RefCell<State>>,
    power: Power,
}

fn apply(names: &mut BTreeMap<String, usize>, change: &Change) {
    match change {
        Change::Link(name, inode) => drop(names.insert(name.clone(), *inode)),
        Change::Move(from, to, inode) => {
            names.insert(to.clone(), *inode);
            if names.get(from) == Some(inode) {
                names.remove(from);
            }
        }
        Change::Unlink(name) => drop(names.remove(name)),
    }
}

fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn belongs_to(change: &Change, folder: &str) -> bool {
    match change {
        Change::Link(name, _) | Change::Move(_, name, _) | Change::Unlink(name) => folder_of(name) == folder,
    }
}

impl Disk {
    pub(crate) fn new(power: &Power) -> Disk {
        Disk { state: Rc::default(), power: power.clone() }
    }

    /// The power comes back: what was not durable is there or not.
    pub(crate) fn crash(&self, dice: &mut Dice) {
        let mut state = self.state.borrow_mut();
        let changes = std::mem::take(&mut state.changes);
        let mut names = state.durable_names.clone();
        changes.iter().filter(|_| dice.yes()).for_each(|change| apply(&mut names, change));
        for inode in &mut state.inodes {
            if inode.content != inode.durable && !dice.yes() {
                let torn = dice.yes();
                let whole = inode.content.len();
                inode.content.clone_from(&inode.durable);
                if torn {
                    let kept = usize::try_from(dice.below(whole as u64 + 1)).unwrap();
                    inode.content.truncate(kept);
                    inode.content.resize(whole, 0);
                }
            }
            inode.durable.clone_from(&inode.content);
        }
        state.durable_names.clone_from(&names);
        state.names = names;
    }

    /// A second disk with the same content, on its own power supply.
    pub(crate) fn copy(&self, power: &Power) -> Disk {
        Disk { state: Rc::new(RefCell::new(self.state.borrow().clone())), power: power.clone() }
    }

    pub(crate) fn file_names(&self) -> Vec<String> {
        self.state.borrow().names.keys().cloned().collect()
    }

    /// Whether some file, or what was ever one, holds `bytes`.
    pub(crate) fn holds(&self, bytes: &[u8]) -> bool {
        let state = self.state.borrow();
        let found = |content: &Vec<u8>| content.windows(bytes.len()).any(|window| window == bytes);
        state.inodes.iter().any(|inode| found(&inode.content) || found(&inode.durable))
    }

    fn change(&self) -> Result<(), Error> {
        if self.power.change() { Ok(()) } else { Err(no_power()) }
    }

    fn inode(&self, name: &str) -> Result<usize, Error> {
        self.state.borrow().names.get(name).copied().ok_or_else(|| failed(ErrorKind::NotFound))
    }
}

fn failed(kind: ErrorKind) -> Error {
    Error::Io { what: "the model".to_owned(), source: IoError::from(kind) }
}

pub(crate) fn no_power() -> Error {
    failed(ErrorKind::NotConnected)
}

impl Files for Disk {
    fn read(&self, name: &str, limit_bytes: usize) -> Result<Option<Vec<u8>>, Error> {
        if self.power.is_cut() {
            return Err(no_power());
        }
        let state = self.state.borrow();
        let content = state.names.get(name).map(|inode| state.inodes[*inode].content.clone());
        assert!(content.as_ref().is_none_or(|content| content.len() <= limit_bytes));
        Ok(content)
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, Error> {
        let inside = |name: &&String| folder_of(name) == folder;
        let state = self.state.borrow();
        let names = state.names.keys().filter(inside);
        Ok(names.map(|name| name.rsplit('/').next().unwrap().to_owned()).collect())
    }

    fn make_folder(&mut self, _: &str) -> Result<(), Error> {
        self.change()
    }

    fn write(&mut self, name: &str, content: &[u8]) -> Result<(), Error> {
        self.change()?;
        let mut state = self.state.borrow_mut();
        let inode = if let Some(inode) = state.names.get(name) {
            *inode
        } else {
            let inode = state.inodes.len();
            state.inodes.push(Inode::default());
            state.names.insert(name.to_owned(), inode);
            state.changes.push(Change::Link(name.to_owned(), inode));
            inode
        };
        state.inodes[inode].content = content.to_vec();
        Ok(())
    }

    fn sync(&mut self, name: &str) -> Result<(), Error> {
        self.change()?;
        let inode = self.inode(name)?;
        let inode = &mut self.state.borrow_mut().inodes[inode];
        inode.durable.clone_from(&inode.content);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), Error> {
        self.change()?;
        let change = Change::Move(from.to_owned(), to.to_owned(), self.inode(from)?);
        let mut state = self.state.borrow_mut();
        apply(&mut state.names, &change);
        state.changes.push(change);
        Ok(())
    }

    fn overwrite(&mut self, name: &str) -> Result<(), Error> {
        self.change()?;
        let inode = self.inode(name)?;
        self.state.borrow_mut().inodes[inode].content.fill(0);
        self.sync(name)
    }

    fn remove(&mut self, name: &str) -> Result<(), Error> {
        self.change()?;
        let mut state = self.state.borrow_mut();
        if state.names.remove(name).is_some() {
            state.changes.push(Change::Unlink(name.to_owned()));
        }
        Ok(())
    }

    fn sync_folder(&mut self, folder: &str) -> Result<(), Error> {
        self.change()?;
        let mut state = self.state.borrow_mut();
        let (durable, open): (Vec<Change>, Vec<Change>) =
            std::mem::take(&mut state.changes).into_iter().partition(|change| belongs_to(change, folder));
        durable.iter().for_each(|change| apply(&mut state.durable_names, change));
        state.changes = open;
        Ok(())
    }
}

/// The model itself: it loses what was not synced, and keeps what was.
#[test]
fn the_model_loses_only_what_was_not_synced() {
    let disk = Disk::default();
    let mut files = disk.clone();
    files.write("a", b"one").unwrap();
    files.sync("a").unwrap();
    files.sync_folder("").unwrap();
    files.write("a.new", b"two").unwrap();
    files.rename("a.new", "a").unwrap();
    files.write("b", b"three").unwrap();
    let outcome = |seed| {
        let copy = disk.copy(&Power::default());
        copy.crash(&mut Dice::new(seed));
        (copy.read("a", 9).unwrap(), copy.read("b", 9).unwrap())
    };
    assert_eq!(outcome(0), (Some(b"one".to_vec()), None));
    assert_eq!(outcome(1), (Some(b"two".to_vec()), Some(b"three".to_vec())));
    let all: std::collections::BTreeSet<_> = (2..200).map(outcome).collect();
    assert!(all.contains(&(Some(Vec::new()), None)), "a rename before the content: {all:?}");
    assert!(all.len() > 5);
}
