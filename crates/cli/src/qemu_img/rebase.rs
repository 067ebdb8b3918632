//! `qemu-img rebase`: puts an image on another backing image.

use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::image_args::ImageArgs;
use super::nodes::{self, Node};
use super::open::{self, Opened, Purpose};
use super::options::{self, Cache};
use super::percent::Percent;
use super::program::{self, Failure, Program, Result, error, usage};
use super::{create, errno, help};
use catena::ops::rebase::{self, Request};
use catena::ops::relink::{self, NewBacking, Safety};
use catena::ops::{Moving, Silent};
use catena::{Error, ErrorKind, Format, Layer, Policy, Start};
use catena_engine::{Disk, ExtentKind, GuestOffset};

const OPTIONS: Options = Options {
    short: "hf:b:cF:upqt:T:U",
    long: &[
        long("help", 'h', Nothing),
        long("quiet", 'q', Nothing),
        long("progress", 'p', Nothing),
        word("object", Argument),
        word("image-opts", Nothing),
        long("force-share", 'U', Nothing),
        long("format", 'f', Argument),
        long("cache", 't', Argument),
        long("compress", 'c', Nothing),
        long("backing", 'b', Argument),
        long("backing-format", 'F', Argument),
        long("backing-cache", 'T', Argument),
        long("backing-unsafe", 'u', Nothing),
    ],
};

/// Bytes that QEMU compares at once.
const PIECE: u64 = 2 << 20;
/// The longest name of a backing image.
const LONGEST_NAME: usize = 1023;

#[derive(Default)]
struct Said {
    image: ImageArgs,
    backing: Option<String>,
    backing_format: Option<String>,
    unchecked: bool,
    compressed: bool,
    progress: bool,
    quiet: bool,
    cache: Option<String>,
    backing_cache: Option<String>,
}

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let mut said = Said::default();
    let others = program::options(OPTIONS, words, |key, value| {
        match key {
            Key::Letter('b') => said.backing = Some(value),
            Key::Letter('c') => said.compressed = true,
            Key::Letter('F') => said.backing_format = Some(value),
            Key::Letter('u') => said.unchecked = true,
            Key::Letter('p') => said.progress = true,
            Key::Letter('q') => said.quiet = true,
            Key::Letter('t') => said.cache = Some(value),
            Key::Letter('T') => said.backing_cache = Some(value),
            _ => said.image.take(key, value)?,
        }
        Ok(())
    })?;
    let Some(others) = others else {
        return help::print(program);
    };
    let [name] = others.as_slice() else {
        return Err(usage("Expecting one image file name"));
    };
    if !said.unchecked && said.backing.is_none() {
        return Err(usage("Must specify backing file (-b) or use unsafe mode (-u)"));
    }
    let percent = Percent::begin(said.progress && !said.quiet);
    // The line that tells how far it got ends behind the message.
    said.rebase(program, name, &percent)
        .map_err(|failure| Failure::Silent(program.report(&failure)))
}

impl Said {
    fn rebase(&self, program: &Program, name: &str, percent: &Percent) -> Result<u8> {
        check_cache(self.cache.as_deref(), Cache::Target)?;
        check_cache(self.backing_cache.as_deref(), Cache::Source)?;
        // Only the new backing image is shared with writers.
        let opened = open::open(
            program,
            self.image.named(name),
            Purpose {
                write: true,
                alone: self.unchecked,
                ..Purpose::default()
            },
        )?;
        opened.is_by_its_name()?;
        let layer = opened.top()?;
        if self.compressed && layer.format != Format::Qcow2 {
            return Err(error("Compression not supported for this file format"));
        }
        if let Some(format) = &self.backing_format
            && !nodes::is_driver(format)
        {
            return Err(error(format!("Invalid format name: '{format}'")));
        }
        let wanted = self.backing.as_deref().filter(|wanted| !wanted.is_empty());
        if !self.unchecked {
            if let Some(wanted) = wanted {
                self.check_new(&opened, wanted)?;
            }
            if percent.is_shown() {
                percent.expect(self.steps(&opened, wanted)?);
            }
        }
        let outcome = self
            .new_backing(wanted, layer)
            .map_err(|text| self.not_changed(&text))
            .and_then(|new| match self.unchecked {
                true => self.relink(opened, new),
                false => self.copy(opened, new, percent),
            });
        percent.complete();
        outcome.map(|()| 0)
    }

    /// What is recorded then, or why it cannot be.
    fn new_backing(&self, wanted: Option<&str>, layer: &Layer) -> Result<Option<NewBacking>, String> {
        let unsupported = || "Operation not supported".to_owned();
        let Some(name) = wanted else {
            return match layer.format {
                Format::Qcow2 => Ok(None),
                _ => Err(unsupported()),
            };
        };
        let Some(format) = &self.backing_format else {
            return Err("backing format must be specified".to_owned());
        };
        if layer.format != Format::Qcow2 {
            return Err(unsupported());
        }
        if name.len() > LONGEST_NAME {
            return Err("Invalid argument".to_owned());
        }
        Ok(Some(NewBacking {
            name: name.to_owned(),
            format: match Format::from_qemu(format) {
                Some(format) => format,
                // What is not a format is recorded all the same where nobody asks whether it is right.
                None if self.unchecked => Format::Raw,
                None => return Err(unsupported()),
            },
        }))
    }

    fn not_changed(&self, why: &str) -> Failure {
        let name = self.backing.as_deref().unwrap_or("(null)");
        error(format!("Could not change the backing file to '{name}': {why}"))
    }

    /// Whether the new backing image can be opened.
    fn check_new(&self, opened: &Opened, wanted: &str) -> Result<()> {
        let fail = |text: String| error(format!("Could not open new backing file '{wanted}': {text}"));
        let own = opened.node.filename.as_str();
        let node = match wanted.starts_with("json:") {
            true => Node::named(wanted, self.backing_format.as_deref()),
            false => Node::named(&nodes::beside(own, wanted), self.backing_format.as_deref()),
        };
        let node = match node {
            // A name that is not a file's is said as it was given.
            Ok(node) => node,
            Err(text) => return Err(fail(text)),
        };
        let purpose = Purpose {
            shared: self.image.shared,
            ..Purpose::default()
        };
        open::open_node(node, purpose).map(drop).map_err(fail)
    }

    /// What QEMU says of how far it is, and when: it counts the pieces that it compares.
    fn steps(&self, opened: &Opened, wanted: Option<&str>) -> Result<Vec<(u64, f32)>> {
        let disk = opened.disk()?;
        let size = disk.size();
        let step = match size.min(PIECE) {
            0 => 0.0,
            piece => 100.0 / (size / piece) as f32,
        };
        let shared_from = wanted.and_then(|wanted| {
            let name = open::backing_name(opened.names.first()?, wanted);
            opened.names.iter().skip(1).position(|known| *known == name)
        });
        let old_size = opened
            .chain
            .layers
            .get(1)
            .and_then(Layer::virtual_size)
            .unwrap_or_default();
        let mut steps = Vec::new();
        let (mut at, mut compared, mut now) = (0, 0, 0.0_f32);
        let mut run: Option<(u64, u64)> = None;
        let mut add = |from: u64, to: u64| {
            let mut at = from;
            while at < to {
                let len = (to - at).min(PIECE);
                at += len;
                compared += len;
                now = (now + step).min(100.0);
                steps.push((compared, now));
            }
        };
        while at < size {
            let extents = disk.extents(GuestOffset(at), GuestOffset(size));
            for extent in extents.map_err(|failed| {
                error(format!(
                    "error while reading image metadata: {}",
                    errno::word(&failed)
                ))
            })? {
                let depth = usize::try_from(extent.layer).unwrap_or(usize::MAX);
                let answered = extent.kind != ExtentKind::Unallocated;
                let own = answered && depth == 0;
                let kept = shared_from.is_some_and(|from| !answered || depth > from);
                // Behind the end of the old backing image nothing is known to stay.
                let known_to = match own || shared_from == Some(0) {
                    true => u64::MAX,
                    false => old_size,
                };
                at = extent.end().0;
                let settled = match own || kept {
                    true => at.min(known_to).max(extent.start.0),
                    false => extent.start.0,
                };
                if settled > extent.start.0
                    && let Some((from, to)) = run.take()
                {
                    add(from, to);
                }
                if settled < at {
                    let from = run.map_or(settled, |(from, _)| from);
                    run = Some((from, at));
                }
            }
        }
        if let Some((from, to)) = run {
            add(from, to);
        }
        Ok(steps)
    }

    /// Copies what would change, and records the new backing image.
    fn copy(&self, opened: Opened, backing: Option<NewBacking>, percent: &Percent) -> Result<()> {
        let start = start_of(&opened)?;
        drop(opened);
        let request = Request {
            start,
            backing,
            // What of the old backing image is zeros is copied as bytes, as QEMU does.
            moving: Moving {
                sparse: 0,
                ..Moving::default()
            },
            compressed: self.compressed,
        };
        let plan =
            rebase::plan(&request, &Policy::qemu()).map_err(|failed| self.not_changed(&reason(&failed)))?;
        plan.execute(percent).map_err(|failed| {
            error(format!(
                "Error while writing to COW image: {}",
                errno::word(&failed)
            ))
        })
    }

    /// Records the new backing image, whatever that does to what the guest sees.
    fn relink(&self, opened: Opened, backing: Option<NewBacking>) -> Result<()> {
        let image = opened.node.filename.clone().into();
        drop(opened);
        let request = relink::Request {
            image,
            backing,
            safety: Safety::Unsafe,
        };
        let word = self.backing_format.as_deref();
        let word = word.filter(|word| request.backing.is_some() && Format::from_qemu(word).is_none());
        let policy = Policy::qemu();
        let plan = match word {
            Some(word) => relink::plan_recording(&request, word, &policy, &Silent),
            None => relink::plan(&request, &policy, &Silent),
        };
        plan.and_then(|plan| plan.execute())
            .map_err(|failed| self.not_changed(&reason(&failed)))
    }
}

/// A cache mode that there is not.
pub fn check_cache(mode: Option<&str>, whose: Cache) -> Result<()> {
    mode.map_or(Ok(()), |mode| options::cache_mode(mode, whose))
}

/// Where to find the image again.
fn start_of(opened: &Opened) -> Result<Start> {
    let layer = opened.top()?;
    Ok(Start {
        source: layer.source.clone(),
        format: Some(layer.format),
    })
}

/// Why the library does not do it, in QEMU's words where it has some.
fn reason(failed: &Error) -> String {
    match failed.kind() {
        ErrorKind::TooLarge | ErrorKind::NoSpace => "No space left in the file header".to_owned(),
        _ => create::translate(failed, ""),
    }
}
