//! A job: what is asked of whom, on which images, and what tells that all did the same.

use crate::images::Folder;
use anyhow::Result;

/// Where the images of a job lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// On the disk.
    Disk,
    /// In memory, where no disk makes noise.
    Memory,
    /// On XFS with reflinks, mounted from a file for the purpose: only root can.
    Reflink,
}

/// What a job works on: made once in each place where a job asks for it.
#[derive(Clone)]
pub struct Input {
    /// Tells inputs apart.
    pub name: String,
    /// Makes the images.
    pub make: fn(&Folder, u64) -> Result<()>,
    /// Handed on to `make`: how much data, or how many layers.
    pub size: u64,
}

/// Whose command a contender's words are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `catena`.
    Catena,
    /// `catena qemu-img`.
    CatenaImg,
    /// Catena's library in process.
    CatenaWork,
    /// Another library in process; its name is the first word.
    PeerWork,
    /// A tool on `PATH`.
    Tool(&'static str),
}

/// Somebody who does the job.
#[derive(Clone, Debug)]
pub struct Contender {
    /// What the table calls it.
    pub name: &'static str,
    /// The program.
    pub program: Program,
    /// Its arguments.
    pub words: Vec<String>,
    /// By how much Catena is meant to be better than it: its time by Catena's.
    pub goal: Option<f64>,
}

/// What tells that all contenders did the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Same {
    /// That each succeeded.
    Success,
    /// What was printed.
    Output,
    /// What was read in process.
    Digest,
    /// The content of the image of this name, as `qemu-img compare` sees it.
    Image(&'static str),
    /// The bytes of the file of this name.
    Bytes(&'static str),
}

/// A job.
#[derive(Clone)]
pub struct Job {
    /// What the table calls it, and the command line chooses it by.
    pub name: String,
    /// Where it happens.
    pub place: Place,
    /// What it needs.
    pub inputs: Vec<Input>,
    /// The files that it changes: copies, under the same name without the first letter, of files whose name begins with `=`.
    pub fresh: Vec<&'static str>,
    /// Who does it, Catena first.
    pub contenders: Vec<Contender>,
    /// What must be the same for all.
    pub same: Same,
    /// Whether the time is that of the whole command also in process.
    pub whole: bool,
    /// The files that are brought into memory first: what is waited for is not the disk.
    pub warm: Vec<String>,
    /// A curve of the plot, and the depth of which this job is a point.
    pub point: Option<(&'static str, u64)>,
}

impl Job {
    /// A job that nobody does yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            place: Place::Disk,
            inputs: Vec::new(),
            fresh: Vec::new(),
            contenders: Vec::new(),
            same: Same::Success,
            whole: false,
            warm: Vec::new(),
            point: None,
        }
    }

    /// A job of `qemu-img` words, which `catena qemu-img` and QEMU's own are given.
    pub fn img(name: impl Into<String>, words: &str) -> Self {
        Self::new(name).by("catena", Program::CatenaImg, words).by(
            "qemu-img",
            Program::Tool("qemu-img"),
            words,
        )
    }

    /// One more contender. Words are parted by single blanks: two in a row are an empty word, and `|` is a blank within a word.
    #[must_use]
    pub fn by(mut self, name: &'static str, program: Program, words: &str) -> Self {
        self.contenders.push(Contender {
            name,
            program,
            words: words.split(' ').map(|word| word.replace('|', " ")).collect(),
            goal: None,
        });
        self
    }

    /// By how much Catena is meant to be better than the contender that was added last.
    #[must_use]
    pub fn goal(mut self, ratio: f64) -> Self {
        if let Some(last) = self.contenders.last_mut() {
            last.goal = Some(ratio);
        }
        self
    }

    /// Where it happens; on the disk if not told.
    #[must_use]
    pub fn place(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    /// What it needs.
    #[must_use]
    pub fn on(mut self, name: &str, make: fn(&Folder, u64) -> Result<()>, size: u64) -> Self {
        self.inputs.push(Input {
            name: format!("{name} {size}"),
            make,
            size,
        });
        self
    }

    /// A file that it changes.
    #[must_use]
    pub fn changes(mut self, name: &'static str) -> Self {
        self.fresh.push(name);
        self
    }

    /// What must be the same for all.
    #[must_use]
    pub fn same(mut self, same: Same) -> Self {
        self.same = same;
        self
    }

    /// Counts the time of the whole command also of a contender in process.
    #[must_use]
    pub fn whole_commands(mut self) -> Self {
        self.whole = true;
        self
    }

    /// Has files read before anything runs.
    #[must_use]
    pub fn warmed(mut self, files: impl IntoIterator<Item = String>) -> Self {
        self.warm.extend(files);
        self
    }

    /// Makes it a point of a curve.
    #[must_use]
    pub fn point(mut self, curve: &'static str, depth: u64) -> Self {
        self.point = Some((curve, depth));
        self
    }
}
