//! What a program did to some folders, as changes that reach the disk each for itself, and the folders as they are when some have.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::tree::{Entry, File, Identity, Tree};

/// A folder, link or file, by its number.
pub(super) type Node = usize;

/// One thing that was done.
#[derive(Debug)]
pub(super) enum Event {
    /// Bytes were written, or became zeros. They may reach the disk in part.
    Data { node: Node, offset: u64, bytes: Vec<u8> },
    /// A file has this many bytes.
    Length { node: Node, len: u64 },
    /// A file was changed at this time, as far as that is known.
    Time { node: Node, time: Option<(i64, u32)> },
    /// Names of one folder or two.
    Names(Vec<Naming>),
    /// What was done before some event to something, or to all of a file system, is on the disk.
    Sync { covers: usize, of: Synced },
}

/// A name appears or goes.
#[derive(Clone, Debug)]
pub(super) struct Naming {
    pub folder: Node,
    pub name: OsString,
    pub node: Node,
    pub appears: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Synced {
    Node(Node),
    /// Without what is not needed to read it: its times.
    Content(Node),
    /// All of the file system that this root is in.
    All(usize),
}

#[derive(Clone, Debug)]
enum Kind {
    Folder(BTreeMap<OsString, Node>),
    Link(PathBuf),
    File(File),
}

#[derive(Clone, Debug)]
struct State {
    kind: Kind,
    root: usize,
}

/// Folders, what was done to them, and what they are now.
#[derive(Debug)]
pub(super) struct Disk {
    roots: Vec<(PathBuf, Node)>,
    /// The number of the file system of each root, which is that of the first root in it.
    systems: Vec<usize>,
    /// What there was, and what is new as it was when it was made.
    start: Vec<State>,
    now: Vec<State>,
    pub(super) events: Vec<Event>,
}

impl Disk {
    pub fn new(tree: &Tree) -> Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let mut disk = Self {
            roots: Vec::new(),
            systems: Vec::new(),
            start: Vec::new(),
            now: Vec::new(),
            events: Vec::new(),
        };
        let mut devices = Vec::new();
        for (root, path) in tree.roots.iter().enumerate() {
            let folder = disk.add(Kind::Folder(BTreeMap::new()), root);
            disk.roots.push((path.clone(), folder));
            let device = std::fs::metadata(path)?.dev();
            devices.push(device);
            disk.systems
                .push(devices.iter().position(|other| *other == device).unwrap_or(root));
        }
        let mut files = HashMap::new();
        for (path, entry) in &tree.entries {
            let (folder, name) = disk.place(path).context("a name without a folder")?;
            let root = disk.now[folder].root;
            let node = match entry {
                Entry::Folder => disk.add(Kind::Folder(BTreeMap::new()), root),
                Entry::Link(target) => disk.add(Kind::Link(target.clone()), root),
                Entry::File(number) => match files.get(number) {
                    Some(node) => *node,
                    None => {
                        let node = disk.add(Kind::File(tree.files[*number].clone()), root);
                        files.insert(*number, node);
                        node
                    }
                },
            };
            for states in [&mut disk.start, &mut disk.now] {
                if let Kind::Folder(names) = &mut states[folder].kind {
                    names.insert(name.to_owned(), node);
                }
            }
        }
        Ok(disk)
    }

    fn add(&mut self, kind: Kind, root: usize) -> Node {
        let state = State { kind, root };
        self.start.push(state.clone());
        self.now.push(state);
        self.start.len() - 1
    }

    /// How many roots there are.
    pub fn roots(&self) -> usize {
        self.roots.len()
    }

    /// The file system that something is in.
    pub fn system(&self, node: Node) -> usize {
        self.systems[self.start[node].root]
    }

    pub fn system_of_root(&self, root: usize) -> usize {
        self.systems[root]
    }

    /// What has this name now.
    pub fn find(&self, path: &Path) -> Option<Node> {
        if let Some((_, node)) = self.roots.iter().find(|(root, _)| root == path) {
            return Some(*node);
        }
        let (folder, name) = self.place(path)?;
        match &self.now[folder].kind {
            Kind::Folder(names) => names.get(name).copied(),
            _ => None,
        }
    }

    /// The folder that a path is in, if that is here, and its name there.
    pub fn place<'a>(&self, path: &'a Path) -> Option<(Node, &'a OsStr)> {
        Some((self.find(path.parent()?)?, path.file_name()?))
    }

    /// The number of the root that something is below.
    pub fn root(&self, node: Node) -> usize {
        self.now[node].root
    }

    pub fn make_folder(&mut self, path: &Path) -> Result<()> {
        self.make(path, Kind::Folder(BTreeMap::new())).map(|_| ())
    }

    pub fn make_link(&mut self, path: &Path, target: PathBuf) -> Result<()> {
        self.make(path, Kind::Link(target)).map(|_| ())
    }

    pub fn make_file(&mut self, path: &Path, mode: u32) -> Result<Node> {
        let file = File {
            bytes: Arc::default(),
            mode,
            modified: (0, 0),
            identity: None,
        };
        let node = self.make(path, Kind::File(file))?;
        self.events.push(Event::Time { node, time: None });
        Ok(node)
    }

    fn make(&mut self, path: &Path, kind: Kind) -> Result<Node> {
        let (folder, _) = self.place(path).context("nothing is made elsewhere")?;
        let node = self.add(kind, self.now[folder].root);
        self.name(path, node)?;
        Ok(node)
    }

    /// Gives something another name.
    pub fn name(&mut self, path: &Path, node: Node) -> Result<()> {
        let naming = self.naming(path, node, true)?;
        self.do_names(vec![naming]);
        Ok(())
    }

    pub fn unname(&mut self, path: &Path) -> Result<()> {
        let node = self.find(path).context("nothing has this name")?;
        let naming = self.naming(path, node, false)?;
        self.do_names(vec![naming]);
        Ok(())
    }

    pub fn rename(&mut self, from: &Path, to: &Path) -> Result<()> {
        let node = self.find(from).context("nothing has this name")?;
        let names = vec![self.naming(from, node, false)?, self.naming(to, node, true)?];
        self.do_names(names);
        Ok(())
    }

    fn naming(&self, path: &Path, node: Node, appears: bool) -> Result<Naming> {
        let (folder, name) = self.place(path).context("it is in no folder of these")?;
        Ok(Naming {
            folder,
            name: name.to_owned(),
            node,
            appears,
        })
    }

    fn do_names(&mut self, names: Vec<Naming>) {
        for naming in &names {
            apply_name(&mut self.now, naming);
        }
        self.events.push(Event::Names(names));
    }

    pub fn write(&mut self, node: Node, offset: u64, bytes: Vec<u8>) {
        let end = offset + bytes.len() as u64;
        let len = self.len(node);
        self.do_and_note(Event::Data { node, offset, bytes });
        if end > len {
            self.do_and_note(Event::Length { node, len: end });
        }
        self.events.push(Event::Time { node, time: None });
    }

    pub fn set_len(&mut self, node: Node, len: u64) {
        self.do_and_note(Event::Length { node, len });
        self.events.push(Event::Time { node, time: None });
    }

    /// A file's time of change is set, or found out.
    pub fn set_time(&mut self, node: Node, time: (i64, u32)) {
        self.events.push(Event::Time {
            node,
            time: Some(time),
        });
    }

    /// What a file is known by, and when it was changed last.
    pub fn learn(&mut self, node: Node, identity: Identity, modified: (i64, u32)) {
        for states in [&mut self.start, &mut self.now] {
            if let Kind::File(file) = &mut states[node].kind {
                file.identity = Some(identity);
            }
        }
        let last = { self.events.iter_mut().rev() }.find_map(|event| match event {
            Event::Time { node: of, time } if *of == node => Some(time),
            _ => None,
        });
        if let Some(time @ None) = last {
            *time = Some(modified);
        }
    }

    pub fn sync(&mut self, covers: usize, of: Synced) {
        self.events.push(Event::Sync { covers, of });
    }

    pub fn len(&self, node: Node) -> u64 {
        self.bytes(node).map_or(0, |bytes| bytes.len() as u64)
    }

    pub fn bytes(&self, node: Node) -> Option<&[u8]> {
        match &self.now[node].kind {
            Kind::File(file) => Some(&file.bytes),
            _ => None,
        }
    }

    fn do_and_note(&mut self, event: Event) {
        apply(&mut self.now, &event, None);
        self.events.push(event);
    }

    /// The folders as they are now.
    pub fn tree(&self) -> Tree {
        self.tree_of(&self.now)
    }

    /// The folders when of the events those have reached the disk that `has` says, of data the ranges that `data` says.
    pub fn tree_where(
        &self,
        has_name: impl Fn(usize, &Naming) -> bool,
        has: impl Fn(usize, Node) -> bool,
        data: impl Fn(usize) -> Vec<Range<usize>>,
    ) -> Tree {
        let mut states = self.start.clone();
        for (number, event) in self.events.iter().enumerate() {
            match event {
                Event::Data { .. } => apply(&mut states, event, Some(&data(number))),
                Event::Length { node, .. } | Event::Time { node, .. } if has(number, *node) => {
                    apply(&mut states, event, None);
                }
                Event::Names(names) => {
                    for naming in names.iter().filter(|naming| has_name(number, naming)) {
                        apply_name(&mut states, naming);
                    }
                }
                _ => {}
            }
        }
        // What is behind its end is not there, and what was not written before that are zeros.
        let mut lens: Vec<_> = { self.start.iter() }
            .map(|state| match &state.kind {
                Kind::File(file) => file.bytes.len(),
                _ => 0,
            })
            .collect();
        for (number, event) in self.events.iter().enumerate() {
            if let Event::Length { node, len } = event
                && has(number, *node)
            {
                lens[*node] = *len as usize;
            }
        }
        for (state, len) in states.iter_mut().zip(lens) {
            if let Kind::File(file) = &mut state.kind
                && file.bytes.len() != len
            {
                Arc::make_mut(&mut file.bytes).resize(len, 0);
            }
        }
        self.tree_of(&states)
    }

    fn tree_of(&self, states: &[State]) -> Tree {
        let mut tree = Tree {
            roots: self.roots.iter().map(|(path, _)| path.clone()).collect(),
            ..Tree::default()
        };
        let mut files = HashMap::new();
        let mut folders = self.roots.clone();
        while let Some((path, folder)) = folders.pop() {
            let Kind::Folder(names) = &states[folder].kind else {
                continue;
            };
            for (name, node) in names {
                let path = path.join(name);
                let entry = match &states[*node].kind {
                    Kind::Folder(_) => {
                        folders.push((path.clone(), *node));
                        Entry::Folder
                    }
                    Kind::Link(target) => Entry::Link(target.clone()),
                    Kind::File(file) => Entry::File(*files.entry(*node).or_insert_with(|| {
                        tree.files.push(file.clone());
                        tree.files.len() - 1
                    })),
                };
                tree.entries.insert(path, entry);
            }
        }
        tree
    }
}

fn apply_name(states: &mut [State], naming: &Naming) {
    if let Kind::Folder(names) = &mut states[naming.folder].kind {
        if naming.appears {
            names.insert(naming.name.clone(), naming.node);
        } else {
            names.remove(&naming.name);
        }
    }
}

/// Does something to a file; of data, these ranges, or all.
fn apply(states: &mut [State], event: &Event, ranges: Option<&[Range<usize>]>) {
    let (Event::Data { node, .. } | Event::Length { node, .. } | Event::Time { node, .. }) = event else {
        return;
    };
    let Kind::File(file) = &mut states[*node].kind else {
        return;
    };
    match event {
        Event::Data { offset, bytes, .. } => {
            let whole = 0..bytes.len();
            let ranges = ranges.unwrap_or(std::slice::from_ref(&whole));
            for range in ranges.iter().filter(|range| !range.is_empty()) {
                let (start, end) = (*offset as usize + range.start, *offset as usize + range.end);
                let content = Arc::make_mut(&mut file.bytes);
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(&bytes[range.clone()]);
            }
        }
        Event::Length { len, .. } => Arc::make_mut(&mut file.bytes).resize(*len as usize, 0),
        // A time that nobody asked for is any that no file has otherwise.
        Event::Time { time, .. } => file.modified = time.unwrap_or((1_000_000_000, 0)),
        _ => {}
    }
}
