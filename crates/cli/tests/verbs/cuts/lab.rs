//! One operation, what it makes of its images, and whether what is left when it is cut off keeps the promises.

use crate::common::{Answer, Images};
use catena_testkit::Folder;
use catena_testkit::cuts::{Fault, Operation, Order, Point, Recording, Tree};
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An operation.
pub struct Case {
    pub name: &'static str,
    /// The command. `THERE` is a folder in another file system.
    pub words: &'static str,
    /// Makes the images.
    pub build: fn(&Images),
    /// Images that are kept, each with the places where it may be: it is at one at least, and shows at each what it did.
    pub kept: &'static [&'static [&'static str]],
    /// By which it is finished or taken back.
    pub ways: &'static [Way],
}

/// How what was cut off goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `catena resume`
    Resume,
    /// `catena resume --undo`
    Undo,
    /// The same command.
    Again,
}

/// What a guest sees, kept as a raw image; or a text. `None` for what shows nothing: an image whose backing image is lost.
type Shown = BTreeMap<String, Option<PathBuf>>;

pub struct Lab<'a> {
    case: &'a Case,
    images: Images,
    there: tempfile::TempDir,
    seen: Folder,
    start: Tree,
    /// What is there before, and what is there afterwards.
    before: Shown,
    after: Shown,
    operation: Operation,
    /// What was asked of these bytes already.
    known: HashMap<(u64, PathBuf, PathBuf), bool>,
    sound: HashMap<(u64, PathBuf), Option<i32>>,
    turn: usize,
    broken: Vec<String>,
}

/// What qemu-img is to take a file for; `None` for one that is no image.
fn format(path: &Path, content: &[u8]) -> Option<&'static str> {
    let is_raw = || {
        ["raw", "img"]
            .iter()
            .any(|end| path.extension().is_some_and(|found| found == *end))
    };
    match content.starts_with(b"QFI\xfb") {
        true => Some("qcow2"),
        false => is_raw().then_some("raw"),
    }
}

/// Whether it is an operation's own, as long as that has not ended.
fn is_passing(path: &Path) -> bool {
    let name = path.to_string_lossy().replace(".catena-trash", "");
    name.contains("/.catena-") || name.contains(".catena-part")
}

impl<'a> Lab<'a> {
    pub fn new(case: &'a Case) -> Self {
        let images = Images::new();
        let there = tempfile::tempdir_in("/dev/shm").unwrap();
        (case.build)(&images);
        let words = case.words.replace("THERE", there.path().to_str().unwrap());
        let words: Vec<_> = words.split(' ').collect();
        let program = Path::new(env!("CARGO_BIN_EXE_catena"));
        let operation = Operation::new(program, images.path(), &words).unwrap();
        let start = Tree::read([images.path(), there.path()]).unwrap();
        let mut lab = Self {
            case,
            images,
            there,
            seen: Folder::new(),
            start,
            before: Shown::new(),
            after: Shown::new(),
            operation,
            known: HashMap::new(),
            sound: HashMap::new(),
            turn: 0,
            broken: Vec::new(),
        };
        lab.before = lab.shown("before");
        let told = lab.run(&lab.words());
        assert_eq!(told.status, 0, "{}: {told:?}", case.name);
        lab.after = lab.shown("after");
        lab.keeps("finished");
        lab
    }

    pub fn name(&self) -> &str {
        self.case.name
    }

    pub fn points(&self) -> Vec<Point> {
        self.start.put().unwrap();
        self.operation.points().unwrap()
    }

    /// Runs it with a fault at a call, and sees that all can be mended; no if it does not make it.
    pub fn strike(&mut self, fault: Fault, point: &Point) -> bool {
        self.start.put().unwrap();
        let struck = self.operation.strike(fault, point).unwrap();
        let when = format!("{}, {fault:?} at {point:?}", self.case.name);
        if struck.hit {
            self.tries(&when);
        }
        struck.hit
    }

    /// Cuts it off from power so many times; how often that was.
    pub fn cut_power(&mut self, order: Order, how_many: usize) -> usize {
        self.start.put().unwrap();
        // What a file is known by is what it is now.
        let start = Tree::read([self.images.path(), self.there.path()]).unwrap();
        let recording: Recording = self.operation.record(&start).unwrap();
        let mut made = 0;
        for (number, tree) in recording.cuts(order, 1, how_many).enumerate() {
            tree.put().unwrap();
            self.tries(&format!("{}, power cut {number} by {order:?}", self.case.name));
            made += 1;
        }
        made
    }

    /// Goes on where a promise is broken: what else breaks it tells more.
    fn tries(&mut self, when: &str) {
        if catch_unwind(AssertUnwindSafe(|| self.survives(when))).is_err() {
            self.broken.push(when.to_owned());
        }
    }

    /// Sees that no promise was broken.
    pub fn end(self) {
        assert!(self.broken.is_empty(), "{:#?}", self.broken);
    }

    /// Whether what is there now keeps the promises, and goes on to what was asked or back to what was.
    fn survives(&mut self, when: &str) {
        let way = self.case.ways[self.turn % self.case.ways.len()];
        self.turn += 1;
        let left = self.tree();
        let when = format!("{when}, then {way:?}");
        self.keeps(&when);
        let places = || [".".to_owned(), self.there.path().display().to_string()];
        let resume = |undo: &[&str]| {
            let mut words = vec!["resume".to_owned()];
            words.extend(undo.iter().map(|&word| word.to_owned()));
            words.extend(places());
            self.run(&words)
        };
        let mut told = match way {
            Way::Again => self.run(&self.words()),
            Way::Resume => resume(&[]),
            Way::Undo => resume(&["--undo"]),
        };
        let done = told.status == 0;
        let mut ends = None;
        match way {
            Way::Again if done => ends = Some(true),
            // All was done, and there was nothing to do it to any more.
            Way::Again => ends = Some(true),
            _ if !done && way == Way::Undo && told.err.contains("taken back") => {
                told = resume(&[]);
                ends = Some(true);
            }
            _ if has_begun(&left) => ends = Some(way == Way::Resume),
            _ => {}
        }
        if way != Way::Again {
            assert_eq!(told.status, 0, "{when}: {told:?}");
        }
        self.keeps(&when);
        let (before, after) = (self.before.clone(), self.after.clone());
        let differs = match ends {
            Some(true) => self.differs(&after),
            Some(false) => self.differs(&before),
            // It had not begun, or it had ended.
            None => self.differs(&after).and_then(|_| self.differs(&before)),
        };
        assert_eq!(differs, None, "{when}: {told:?}");
    }

    /// Whether every image that is kept shows what it did, and none is worse than leaking.
    fn keeps(&mut self, when: &str) {
        let tree = self.tree();
        let paths: Vec<_> = tree.names().map(Path::to_owned).collect();
        for places in self.case.kept {
            let there: Vec<_> = { places.iter() }
                .map(|place| self.path(place))
                .filter(|place| tree.content(place).is_some())
                .collect();
            assert!(
                !there.is_empty(),
                "{when}: none of {places:?} is there, but {paths:?}"
            );
            let seen = { places.iter() }.find_map(|place| self.before.get(*place).cloned().flatten());
            let seen = seen.expect("a kept image is there before");
            for place in there {
                assert!(
                    self.shows(&tree, &place, &seen),
                    "{when}: {} shows something else",
                    place.display()
                );
            }
        }
        for path in paths.iter().filter(|path| !is_passing(path)) {
            let content = tree.content(path).unwrap_or_default();
            if format(path, content) != Some("qcow2") {
                continue;
            }
            let own = tree.digest(|other| other == path);
            let status = *self.sound.entry((own, path.clone())).or_insert_with(|| {
                // Whatever it stands on, which may be lost.
                let alone = format!(
                    "json:{{'driver':'qcow2','backing':null,'file':{{'driver':'file','filename':'{}'}}}}",
                    path.display()
                );
                let mut check = Command::new("qemu-img");
                check.args(["check", "-q", &alone.replace('\'', "\"")]);
                check.output().unwrap().status.code()
            });
            assert!(
                matches!(status, Some(0 | 3)),
                "{when}: {}: {status:?}",
                path.display()
            );
        }
    }

    /// What is not as it is wanted; `None` where there is just that.
    fn differs(&mut self, wanted: &Shown) -> Option<String> {
        let tree = self.tree();
        let paths: Vec<_> = tree.names().map(Path::to_owned).collect();
        let names: Vec<_> = wanted.keys().cloned().collect();
        if self.names() != names {
            return Some(format!("there is {:?} and not {names:?}", self.names()));
        }
        for path in paths {
            let short = self.short(&path);
            let Some(Some(seen)) = wanted.get(&short) else {
                continue;
            };
            let content = tree.content(&path).unwrap_or_default();
            let same = match format(&path, content) {
                Some(_) => self.shows(&tree, &path, seen),
                None => content == std::fs::read(seen).unwrap(),
            };
            if !same {
                return Some(format!("{short} is another"));
            }
        }
        None
    }

    fn shows(&mut self, tree: &Tree, path: &Path, seen: &Path) -> bool {
        let digest = tree.digest(|path| !is_passing(path));
        let Some(format) = format(path, tree.content(path).unwrap_or_default()) else {
            return false;
        };
        let key = (digest, path.to_owned(), seen.to_owned());
        *self.known.entry(key).or_insert_with(|| {
            let mut compare = Command::new("qemu-img");
            compare
                .args(["compare", "-q", "-U", "-f", "raw", "-F", format])
                .arg(seen)
                .arg(path);
            compare.output().unwrap().status.success()
        })
    }

    /// All that is there, and what it shows.
    fn shown(&self, when: &str) -> Shown {
        let tree = self.tree();
        let mut shown = Shown::new();
        for (number, path) in tree.names().enumerate() {
            let seen = self.seen.file(&format!("{when}-{number}"));
            let content = tree.content(path);
            let is_there = match content.and_then(|content| format(path, content)) {
                Some(format) => {
                    let mut convert = Command::new("qemu-img");
                    convert
                        .args(["convert", "-f", format, "-O", "raw"])
                        .arg(path)
                        .arg(&seen);
                    convert.output().unwrap().status.success()
                }
                None => content.is_some_and(|text| std::fs::write(&seen, text).is_ok()),
            };
            shown.insert(self.short(path), is_there.then_some(seen));
        }
        shown
    }

    fn tree(&self) -> Tree {
        Tree::read([self.images.path(), self.there.path()]).unwrap()
    }

    /// The names of all that is there.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.tree().names().map(|path| self.short(path)).collect();
        names.sort();
        names
    }

    /// A path as a case has it: within the folder, or below `THERE`; and no time that something was removed at.
    fn short(&self, path: &Path) -> String {
        let text = match path.strip_prefix(self.images.path()) {
            Ok(path) => path.display().to_string(),
            Err(_) => format!(
                "THERE/{}",
                path.strip_prefix(self.there.path()).unwrap().display()
            ),
        };
        match text.split_once(".catena-trash/") {
            None => text,
            Some((before, rest)) => {
                let name = rest.split_once('/').map_or("", |(_, name)| name);
                format!("{before}.catena-trash/when/{name}")
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        match name.strip_prefix("THERE/") {
            Some(name) => self.there.path().join(name),
            None => self.images.file(name),
        }
    }

    fn words(&self) -> Vec<String> {
        let words = self
            .case
            .words
            .replace("THERE", self.there.path().to_str().unwrap());
        words.split(' ').map(str::to_owned).collect()
    }

    fn run(&self, words: &[String]) -> Answer {
        self.images
            .catena(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// Whether a journal says that something was done.
fn has_begun(tree: &Tree) -> bool {
    tree.names().any(|path| {
        let text = tree
            .content(path)
            .filter(|_| path.extension().is_some_and(|end| end == "journal"));
        text.is_some_and(|text| String::from_utf8_lossy(text).contains("{\"done\":"))
    })
}
