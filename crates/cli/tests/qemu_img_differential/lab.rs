//! Two folders of the same images, one for each program.

use catena_testkit::qemu;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const REAL: &str = "qemu-img";

/// The images as they are before each line.
pub struct Lab {
    template: TempDir,
    program: PathBuf,
}

/// A file's age and size, by which it is known whether it was touched.
type State = BTreeMap<PathBuf, (i64, i64, u64)>;

/// The two folders.
pub struct Pair<'a> {
    lab: &'a Lab,
    template: State,
    theirs: TempDir,
    ours: TempDir,
}

impl Lab {
    /// Makes the images by shell commands.
    pub fn new(setup: &[&str]) -> Self {
        let template = catena_testkit::scratch().unwrap();
        let images = template.path().join("images");
        std::fs::create_dir(&images).unwrap();
        for line in setup {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", line])
                .current_dir(&images)
                .stdout(Stdio::null());
            assert!(shell.status().unwrap().success(), "{line}");
        }
        let program = template.path().join("qemu-img");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_catena"), &program).unwrap();
        Self { template, program }
    }

    /// What our program writes.
    pub fn ours(&self, words: &[&str]) -> String {
        let output = Command::new(&self.program).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Where they are.
    pub fn images(&self) -> PathBuf {
        self.template.path().join("images")
    }

    /// Two copies of the images.
    pub fn pair(&self) -> Pair<'_> {
        let copy = || {
            let folder = catena_testkit::scratch().unwrap();
            copy(&self.images().join("."), folder.path());
            folder
        };
        Pair {
            lab: self,
            template: state(&self.images()),
            theirs: copy(),
            ours: copy(),
        }
    }
}

/// Copies a file or folder with its age and its holes.
fn copy(from: &Path, to: &Path) {
    let mut cp = Command::new("cp");
    cp.args(["-a", "--sparse=auto"]).arg(from).arg(to);
    assert!(cp.status().unwrap().success());
}

impl Pair<'_> {
    /// Runs a line through both, tells what differs, and puts everything back.
    pub fn run(&mut self, line: &str) -> Vec<String> {
        let mut found = Vec::new();
        for part in line.split(" ;; ") {
            let words = split(part);
            let theirs = answer(OsStr::new(REAL), &words, self.theirs.path());
            let ours = answer(self.lab.program.as_os_str(), &words, self.ours.path());
            let mut differs = |what: &str, theirs: &str, ours: &str| {
                if theirs != ours {
                    found.push(format!(
                        "  {part}: {what}\n--- theirs\n{theirs}\n--- ours\n{ours}"
                    ));
                }
            };
            differs(
                "status",
                &format!("{:?}", theirs.status.code()),
                &format!("{:?}", ours.status.code()),
            );
            differs("output", &told(&theirs.stdout), &told(&ours.stdout));
            differs("errors", &told(&theirs.stderr), &told(&ours.stderr));
        }
        found.extend(self.compare_images());
        found
    }

    fn compare_images(&mut self) -> Vec<String> {
        let (theirs, ours) = (state(self.theirs.path()), state(self.ours.path()));
        let mut found = Vec::new();
        let mut names: Vec<_> = theirs
            .keys()
            .chain(ours.keys())
            .chain(self.template.keys())
            .collect();
        names.sort();
        names.dedup();
        for name in names {
            let original = self.template.get(name);
            let touched = |now: &State| now.get(name) != original;
            if !touched(&theirs) && !touched(&ours) {
                continue;
            }
            let files = [self.theirs.path().join(name), self.ours.path().join(name)];
            match (theirs.get(name), ours.get(name)) {
                (Some(_), Some(_)) => found.extend(image_difference(&files)),
                (None, Some(_)) => found.push(format!("  {} is there only for ours", name.display())),
                (Some(_), None) => found.push(format!("  {} is there only for theirs", name.display())),
                (None, None) => {}
            }
        }
        self.restore(&theirs, &ours);
        found
    }

    /// Puts everything back, once all has been compared: overlays are compared over what was changed below them.
    fn restore(&self, theirs: &State, ours: &State) {
        for (folder, now) in [(self.theirs.path(), theirs), (self.ours.path(), ours)] {
            let touched = now
                .iter()
                .filter(|(name, state)| self.template.get(*name) != Some(state));
            for (name, _) in touched {
                let _ = std::fs::remove_file(folder.join(name));
            }
            for name in self.template.keys() {
                if now.get(name) != self.template.get(name) {
                    copy(&self.lab.images().join(name), &folder.join(name));
                }
            }
        }
    }
}

/// How two images differ in what a guest sees and in what check and info say.
fn image_difference(files: &[PathBuf; 2]) -> Option<String> {
    let [theirs, ours] = files;
    if std::fs::metadata(theirs).unwrap().len() < 1 << 26
        && std::fs::read(theirs).unwrap() == std::fs::read(ours).unwrap()
    {
        return None;
    }
    let is_qcow2 = |file: &Path| {
        let mut magic = [0; 4];
        let read = std::os::unix::fs::FileExt::read_at(&std::fs::File::open(file).unwrap(), &mut magic, 0);
        read.unwrap() == 4 && magic == *b"QFI\xfb"
    };
    let format = if is_qcow2(theirs) { "qcow2" } else { "raw" };
    let ask = |verb: &str, file: &Path| {
        let name = file.file_name().unwrap().to_owned();
        let words = [
            verb.to_owned(),
            "-U".to_owned(),
            "-f".to_owned(),
            format.to_owned(),
        ];
        let mut command = Command::new(REAL);
        command.args(words).arg(name).current_dir(file.parent().unwrap());
        let output = command.output().unwrap();
        let said = told(&output.stdout);
        let kept: Vec<_> = said
            .lines()
            // Where clusters lie is each program's own affair.
            .filter(|line| {
                !line.contains("file length")
                    && !line.contains("Image end offset")
                    && !line.contains("allocated, ")
            })
            .collect();
        format!("{:?} {}", output.status.code(), kept.join("\n"))
    };
    let name = ours.file_name().unwrap().display();
    let verbs: &[&str] = if format == "qcow2" {
        &["info", "check"]
    } else {
        &["info"]
    };
    for verb in verbs {
        let (theirs, ours) = (ask(verb, theirs), ask(verb, ours));
        // Where theirs leaves leaks and ours none, ours is as it is to be.
        let is_better = theirs.starts_with("Some(3)") && ours.starts_with("Some(0)");
        if theirs != ours && !is_better {
            return Some(format!(
                "  {name} by {verb}:\n--- theirs\n{theirs}\n--- ours\n{ours}"
            ));
        }
    }
    if ask("info", theirs).contains("data file: ") {
        return guest(theirs, format)
            .zip(guest(ours, format))
            .and_then(|(theirs, ours)| {
                (theirs != ours).then(|| format!("  {name} shows its guest something else"))
            });
    }
    let words = [
        OsStr::new("compare"),
        OsStr::new("-U"),
        OsStr::new("-f"),
        OsStr::new(format),
        OsStr::new("-F"),
        OsStr::new(format),
        theirs.as_os_str(),
        ours.as_os_str(),
    ];
    let error = qemu::img(words).err()?.to_string();
    // What stands on nothing cannot be read; that its header says so was seen above.
    (!error.contains("Could not open backing file")).then(|| format!("  {name}: {error}"))
}

/// What a guest sees, of an image that names others relative to the current folder.
fn guest(file: &Path, format: &str) -> Option<Vec<u8>> {
    let raw = file.with_extension("as-raw");
    let mut command = Command::new(REAL);
    command.args(["convert", "-U", "-f", format, "-O", "raw"]);
    command.args([file, &raw]).current_dir(file.parent()?);
    let made = command.output().unwrap().status.success();
    let bytes = made.then(|| std::fs::read(&raw).unwrap());
    let _ = std::fs::remove_file(raw);
    bytes
}

fn answer(program: &OsStr, words: &[String], folder: &Path) -> Output {
    Command::new(program)
        .arg0(REAL)
        .args(words)
        .current_dir(folder)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// What was said, without what depends on the host and the hour.
fn told(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::new();
    for line in text.lines() {
        let start = |key: &str| line.trim_start().starts_with(key);
        if start("disk size:")
            || start("\"actual-size\":")
            || start("\"date-sec\":")
            || start("\"date-nsec\":")
        {
            out.extend(line.split(':').next());
        } else if start("Run completed in") {
            out.push_str("Run completed");
        } else {
            out.push_str(&without_dice(&without_dates(line)));
        }
        out.push('\n');
    }
    out
}

/// Dates in a list of snapshots become a word.
fn without_dates(line: &str) -> String {
    let words: Vec<_> = line.split(' ').collect();
    let is_date = |word: &str| word.len() == 10 && word.starts_with("20") && word.matches('-').count() == 2;
    let mut out = Vec::new();
    let mut after = false;
    for word in words {
        out.push(match word {
            _ if is_date(word) => "DATE",
            _ if after => "TIME",
            other => other,
        });
        after = is_date(word);
    }
    out.join(" ")
}

/// Names that QEMU makes up end with two digits of dice.
fn without_dice(line: &str) -> String {
    match line.split_once("#block") {
        Some((before, behind)) => {
            let rest = behind.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{before}#block{rest}")
        }
        None => line.to_owned(),
    }
}

fn state(folder: &Path) -> State {
    let mut state = State::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                state.insert(name, (meta.mtime(), meta.mtime_nsec(), meta.len()));
            }
        }
    }
    state
}

/// The words of a line; quotes are as in a shell.
pub fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None => match c {
                '\'' | '"' => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                '\\' => word.get_or_insert_default().extend(chars.next()),
                ' ' => words.extend(word.take()),
                c => word.get_or_insert_default().push(c),
            },
        }
    }
    words.extend(word);
    words
}
