//! Cuts, drawn: the instant, and what had reached the disk by then.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::disk::{Disk, Event, Naming, Node, Synced};
use super::tree::Tree;
use crate::Dice;

/// The pieces that a disk writes or does not.
const SECTOR: u64 = 512;
/// Draws of a cut that were there already, before there are no others.
const TRIES: usize = 400;

/// In which order names and lengths reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// In the order in which they were changed, all over a file system: ext4, XFS, Btrfs.
    Journal,
    /// Only those of one folder, and those of one file, in their order: no more than POSIX promises. What was moved to another folder may have left one and
    /// not reached the other.
    Folders,
}

/// What keeps an order of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Lane {
    System(usize),
    Node(Node),
}

/// Cuts, each another one.
#[derive(Debug)]
pub struct Cuts<'a> {
    disk: &'a Disk,
    order: Order,
    dice: Dice,
    left: usize,
    seen: HashSet<u64>,
}

impl<'a> Cuts<'a> {
    pub(super) fn new(disk: &'a Disk, order: Order, seed: u64, how_many: usize) -> Self {
        Self {
            disk,
            order,
            dice: Dice::new(seed),
            left: how_many,
            seen: HashSet::new(),
        }
    }

    fn lane(&self, node: Node) -> Lane {
        match self.order {
            Order::Journal => Lane::System(self.disk.system(node)),
            Order::Folders => Lane::Node(node),
        }
    }

    /// How many events of each lane, counted from the first of all, must have reached the disk at an instant, and which data.
    fn required(&self, instant: usize) -> (HashMap<Lane, usize>, HashSet<usize>) {
        let (mut lanes, mut data) = (HashMap::new(), HashSet::new());
        let events = &self.disk.events;
        for sync in &events[..instant] {
            let Event::Sync { covers, of } = sync else {
                continue;
            };
            for (number, event) in events[..*covers].iter().enumerate() {
                let mut require = |node: Node| {
                    let most = lanes.entry(self.lane(node)).or_insert(0);
                    *most = (*most).max(number + 1);
                };
                match event {
                    Event::Data { node, .. } if self.is_synced(*of, *node) => {
                        data.insert(number);
                    }
                    Event::Length { node, .. } if self.is_synced(*of, *node) => require(*node),
                    Event::Time { node, .. }
                        if self.is_synced(*of, *node) && !matches!(of, Synced::Content(_)) =>
                    {
                        require(*node);
                    }
                    Event::Names(names) => {
                        for naming in names {
                            // A journal has a file's name where it has the file.
                            let is_its_file = self.order == Order::Journal
                                && matches!(of, Synced::Node(node) if *node == naming.node);
                            if is_its_file || self.is_synced(*of, naming.folder) {
                                require(naming.folder);
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        (lanes, data)
    }

    fn is_synced(&self, of: Synced, node: Node) -> bool {
        match of {
            Synced::Node(synced) | Synced::Content(synced) => synced == node,
            Synced::All(root) => self.disk.system_of_root(root) == self.disk.system(node),
        }
    }

    fn draw(&mut self) -> Tree {
        let events = &self.disk.events;
        let instant = self.dice.below(events.len() as u64 + 1) as usize;
        let (required, forced) = self.required(instant);
        // What has come as far as it must, all, or somewhere between; names and data each in their way.
        let (names, data) = *self.dice.one_of(&[
            (1, 1),
            (0, 0),
            (1, 0),
            (0, 1),
            (1, 2),
            (2, 1),
            (2, 2),
            (2, 2),
            (0, 2),
        ]);
        let likely = *self.dice.one_of(&[10, 50, 90]);
        let mut reached: HashMap<Lane, usize> = HashMap::new();
        let mut ranges: HashMap<usize, Vec<Range<usize>>> = HashMap::new();
        for (number, event) in events[..instant].iter().enumerate() {
            let nodes: Vec<Node> = match event {
                Event::Data { offset, bytes, .. } => {
                    let whole = 0..bytes.len();
                    let parts = match data {
                        _ if forced.contains(&number) => vec![whole],
                        0 => vec![],
                        1 => vec![whole],
                        _ if self.dice.chance(25) => tear(&mut self.dice, *offset, bytes.len()),
                        _ if self.dice.chance(likely) => vec![whole],
                        _ => vec![],
                    };
                    ranges.insert(number, parts);
                    continue;
                }
                Event::Length { node, .. } | Event::Time { node, .. } => vec![*node],
                Event::Names(names) => names.iter().map(|naming| naming.folder).collect(),
                Event::Sync { .. } => continue,
            };
            for node in nodes {
                let lane = self.lane(node);
                let least = required.get(&lane).copied().unwrap_or(0);
                reached.entry(lane).or_insert_with(|| match names {
                    0 => least,
                    1 => instant,
                    _ => self.dice.within(least as u64..instant as u64 + 1) as usize,
                });
            }
        }
        let has = |number: usize, node: Node| {
            number < instant && { reached.get(&self.lane(node)) }.is_some_and(|far| number < *far)
        };
        self.disk.tree_where(
            |number: usize, naming: &Naming| has(number, naming.folder),
            has,
            |number| ranges.get(&number).cloned().unwrap_or_default(),
        )
    }
}

impl Iterator for Cuts<'_> {
    type Item = Tree;

    fn next(&mut self) -> Option<Tree> {
        self.left = self.left.checked_sub(1)?;
        for _ in 0..TRIES {
            let tree = self.draw();
            if self.seen.insert(tree.digest(|_| true)) {
                return Some(tree);
            }
        }
        None
    }
}

/// Some of the sectors that bytes at an offset lie in.
fn tear(dice: &mut Dice, offset: u64, len: usize) -> Vec<Range<usize>> {
    let end = offset + len as u64;
    let mut at = offset;
    let mut parts: Vec<Range<usize>> = Vec::new();
    // Long writes in fewer pieces.
    let step = SECTOR * (len as u64 / (32 * SECTOR)).max(1);
    while at < end {
        let next = ((at / SECTOR) * SECTOR + step).min(end);
        if dice.chance(50) {
            parts.push((at - offset) as usize..(next - offset) as usize);
        }
        at = next;
    }
    parts
}
