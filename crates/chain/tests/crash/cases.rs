//! The operations, and what each of them must leave alone.

use catena::ops::commit::{self, After};
use catena::ops::relink::NewBacking;
use catena::ops::{LayerChoice, Moving, OtherChildren, rebase, stream};
use catena::writable::Through;
use catena::{Policy, Result};

use crate::lab::{Lab, unwatched};

/// An operation on the chain of a lab.
pub struct Case {
    pub name: &'static str,
    what: What,
    /// Images that show the same at every instant, for as long as they are there.
    pub kept: &'static [&'static str],
    /// The image that comes to show something else.
    pub changed: Option<&'static str>,
}

enum What {
    Commit {
        top: &'static str,
        base: &'static str,
        after: After,
    },
    Rebase {
        onto: Option<&'static str>,
        compressed: bool,
    },
    Stream {
        base: Option<&'static str>,
        compressed: bool,
    },
}

const ALL: &[&str] = &["base", "a", "b", "c", "other"];

pub const CASES: &[Case] = &[
    Case {
        name: "the active layer is committed, and emptied",
        what: What::Commit {
            top: "c",
            base: "b",
            after: After::Empty,
        },
        kept: &["base", "a", "c", "other"],
        changed: Some("b"),
    },
    Case {
        name: "the active layer is committed, and deleted",
        what: What::Commit {
            top: "c",
            base: "b",
            after: After::Delete,
        },
        kept: &["base", "a", "c", "other"],
        changed: Some("b"),
    },
    Case {
        name: "two layers from the middle are committed, and the upper one is emptied",
        what: What::Commit {
            top: "b",
            base: "base",
            after: After::Empty,
        },
        kept: &["b", "c", "other"],
        changed: Some("base"),
    },
    Case {
        name: "two layers from the middle are committed, and deleted",
        what: What::Commit {
            top: "b",
            base: "base",
            after: After::Delete,
        },
        kept: &["b", "c", "other"],
        changed: Some("base"),
    },
    Case {
        name: "three layers are committed, and kept",
        what: What::Commit {
            top: "c",
            base: "base",
            after: After::Keep,
        },
        kept: &["c", "other"],
        changed: Some("base"),
    },
    Case {
        name: "three layers are committed, and deleted",
        what: What::Commit {
            top: "c",
            base: "base",
            after: After::Delete,
        },
        kept: &["c", "other"],
        changed: Some("base"),
    },
    Case {
        name: "rebase onto another image",
        what: What::Rebase {
            onto: Some("other"),
            compressed: false,
        },
        kept: ALL,
        changed: None,
    },
    Case {
        name: "rebase onto a lower layer",
        what: What::Rebase {
            onto: Some("base"),
            compressed: false,
        },
        kept: ALL,
        changed: None,
    },
    Case {
        name: "rebase onto nothing, compressed",
        what: What::Rebase {
            onto: None,
            compressed: true,
        },
        kept: ALL,
        changed: None,
    },
    Case {
        name: "stream down to the base",
        what: What::Stream {
            base: Some("base"),
            compressed: false,
        },
        kept: ALL,
        changed: None,
    },
    Case {
        name: "stream everything",
        what: What::Stream {
            base: None,
            compressed: false,
        },
        kept: ALL,
        changed: None,
    },
    Case {
        name: "stream everything, compressed",
        what: What::Stream {
            base: None,
            compressed: true,
        },
        kept: ALL,
        changed: None,
    },
];

impl Case {
    /// Does it.
    pub fn run(&self, lab: &Lab, through: Through<'_>) -> Result<()> {
        let policy = Policy::libvirt();
        // In order and by one thread: what is logged is the same every time.
        let moving = Moving {
            threads: 1,
            ..Moving::default()
        };
        match &self.what {
            What::Commit { top, base, after } => {
                let request = commit::Request {
                    start: lab.start("c"),
                    top: LayerChoice::Path(lab.path(top)),
                    base: Some(LayerChoice::Path(lab.path(base))),
                    after: *after,
                    children: OtherChildren::default(),
                    moving,
                };
                commit::plan(&request, &policy)?.execute_through(through, unwatched())
            }
            What::Rebase { onto, compressed } => {
                let request = rebase::Request {
                    start: lab.start("c"),
                    backing: onto.map(|name| NewBacking {
                        name: name.to_owned(),
                        format: lab.format_of(name),
                    }),
                    moving,
                    compressed: *compressed,
                };
                rebase::plan(&request, &policy)?.execute_through(through, unwatched())
            }
            What::Stream { base, compressed } => {
                let request = stream::Request {
                    start: lab.start("c"),
                    base: base.map(|name| LayerChoice::Path(lab.path(name))),
                    moving,
                    compressed: *compressed,
                    dated: None,
                };
                stream::plan(&request, &policy)?.execute_through(through, unwatched())
            }
        }
    }
}

/// What the images of a case show before it, and what the one that is changed shows after.
pub struct Shown {
    kept: Vec<(&'static str, Vec<u8>)>,
    changed: Option<(&'static str, Vec<u8>, Vec<u8>)>,
}

impl Shown {
    /// Does it once, from beginning to end, and looks before and after.
    pub fn by(case: &Case, lab: &Lab, through: Through<'_>) -> Self {
        let see = |name: &&'static str| (*name, lab.view(name).unwrap());
        let kept = case.kept.iter().map(see).collect();
        let before = case.changed.map(|name| lab.view(name).unwrap());
        case.run(lab, through)
            .unwrap_or_else(|error| panic!("{}: {}", case.name, error.full()));
        let shown = Self {
            kept,
            changed: case
                .changed
                .zip(before)
                .map(|(name, before)| (name, before, lab.view(name).unwrap())),
        };
        shown
            .verify_done(lab)
            .unwrap_or_else(|why| panic!("{}: {why}", case.name));
        shown
    }

    /// What is left after something came in between.
    pub fn verify(&self, lab: &Lab) -> Result<u64, String> {
        let leaks = lab.check()?;
        for (name, before) in &self.kept {
            if lab.is_there(name) && lab.view(name)? != *before {
                return Err(format!("{name} shows something else"));
            }
        }
        if let Some((name, before, after)) = &self.changed {
            let now = lab.view(name)?;
            // A raw file may have grown by a part of what it is to grow.
            if !(before.len()..=after.len()).contains(&now.len()) {
                return Err(format!("{name} has {} bytes", now.len()));
            }
            let sector = |bytes: &[u8], at: usize| -> Vec<u8> {
                let mut sector = bytes.iter().skip(at).take(512).copied().collect::<Vec<_>>();
                sector.resize(512, 0);
                sector
            };
            for at in (0..now.len()).step_by(512) {
                let now = sector(&now, at);
                if now != sector(before, at) && now != sector(after, at) {
                    return Err(format!("{name} is neither old nor new at {at:#x}"));
                }
            }
        }
        Ok(leaks)
    }

    /// What is left when it was done, after all.
    pub fn verify_done(&self, lab: &Lab) -> Result<u64, String> {
        let leaks = self.verify(lab)?;
        match &self.changed {
            Some((name, _, after)) if lab.view(name)? != *after => Err(format!("{name} is not finished")),
            _ => Ok(leaks),
        }
    }
}
