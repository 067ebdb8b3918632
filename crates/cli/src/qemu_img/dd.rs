//! `qemu-img dd`: a part of an image as another one.

use super::convert::watched::{self, Failures};
use super::create::Vetted;
use super::create_options::{self, Chosen, Use};
use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::image_args::ImageArgs;
use super::open::{self, Named, Opened, Purpose};
use super::program::{self, Program, Result, error};
use super::target::Target as OpenTarget;
use super::{errno, help, number, size};
use catena::Policy;
use catena::ops::convert::{self, Request, Shared, Target};
use catena::ops::{Input, Moving, Silent};
use catena_engine::Disk;
use std::ops::Range;
use std::sync::Arc;

const SECTOR: u64 = 512;

const OPTIONS: Options = Options {
    short: "hf:O:U",
    long: &[
        long("help", 'h', Nothing),
        word("object", Argument),
        long("format", 'f', Argument),
        long("output-format", 'O', Argument),
        word("image-opts", Nothing),
        long("force-share", 'U', Nothing),
    ],
};

/// The operands.
#[derive(Default)]
struct Operands {
    input: Option<String>,
    output: Option<String>,
    block: Option<u64>,
    count: Option<u64>,
    skip: Option<u64>,
}

impl Operands {
    fn take(&mut self, word: &str) -> Result<()> {
        let Some((name, value)) = word.split_once('=') else {
            return Err(unknown(word));
        };
        match name {
            "if" => self.input = Some(value.to_owned()),
            "of" => self.output = Some(value.to_owned()),
            "bs" => self.block = Some(size::argument("bs", value, 1, i32::MAX as u64).map_err(error)?),
            "count" => self.count = Some(number::argument("count", value, 0, size::MAX).map_err(error)?),
            "skip" => self.skip = Some(number::argument("skip", value, 0, size::MAX).map_err(error)?),
            other => return Err(unknown(other)),
        }
        Ok(())
    }

    /// The bytes of the input that are copied: the first one, and the one behind the last. `None` for the first where it is behind the
    /// end.
    fn range(&self, size: u64) -> (Option<u64>, u64) {
        let block = self.block.unwrap_or(512);
        let bytes = |blocks: u64| blocks.checked_mul(block).filter(|bytes| *bytes <= size::MAX);
        // As in QEMU, blocks that are left out count.
        let end = self.count.and_then(bytes).map_or(size, |count| count.min(size));
        let start = self.skip.map_or(Some(0), bytes).filter(|start| *start <= end);
        (start, end)
    }
}

fn unknown(operand: &str) -> program::Failure {
    error(format!("unrecognized operand {operand}"))
}

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let mut target_format = "raw".to_owned();
    let mut image = ImageArgs::default();
    let others = program::options(OPTIONS, words, |key, value| {
        match key {
            Key::Letter('O') => target_format = value,
            _ => image.take(key, value)?,
        }
        Ok(())
    })?;
    let Some(others) = others else {
        return help::print(program);
    };
    let mut operands = Operands::default();
    for other in &others {
        operands.take(other)?;
    }
    let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
        return Err(error("Must specify both input and output files"));
    };
    let opened = image.open(program, input, Purpose::default())?;
    create_options::known(&target_format).map_err(|_| error("Unknown file format"))?;
    create_options::check_protocol(output).map_err(error)?;
    create_options::creatable(&target_format).map_err(error)?;
    let disk: Arc<dyn Disk> = Arc::new(opened.disk()?);
    let (start, end) = operands.range(disk.size().next_multiple_of(SECTOR));
    let size = end - start.unwrap_or(end);
    let mut chosen = Chosen::of(&target_format, Use::Create);
    chosen.set("size", size.to_string()).map_err(error)?;
    Vetted::of(output, &target_format, chosen)
        .make()
        .map_err(|text| error(format!("{output}: error while creating output image: {text}")))?;
    let named = Named {
        word: output,
        format: Some(&target_format),
        options: false,
    };
    let purpose = Purpose {
        write: true,
        ..Purpose::default()
    };
    let created = open::open(program, named, purpose)?;
    let Some(start) = start else {
        program.say(format!("{input}: cannot skip to specified offset"));
        return Ok(0);
    };
    copy(disk, start..end, &created)?;
    Ok(0)
}

/// Copies the bytes, zeros and all.
fn copy(disk: Arc<dyn Disk>, range: Range<u64>, created: &Opened) -> Result<()> {
    let target = OpenTarget::open(created)?;
    let failures = Arc::new(Failures::default());
    let request = Request {
        sources: vec![Input::Part {
            of: Box::new(Input::Open {
                disk: Arc::new(watched::Source {
                    disk,
                    failures: Arc::clone(&failures),
                    salvage: false,
                }),
                name: String::new(),
            }),
            start: range.start,
            end: range.end,
        }],
        target: Target::Open {
            disk: Arc::clone(&target.disk),
            name: String::new(),
            is_new: true,
            backing_size: None,
            qcow2: target.qcow2.clone(),
        },
        shared: Shared::Compared,
        moving: Moving {
            sparse: 0,
            ..Moving::default()
        },
        compressed: false,
    };
    let copied = convert::plan(&request, &Policy::qemu()).and_then(|plan| plan.execute(&Silent));
    copied.and_then(|()| target.finish()).map_err(|failed| {
        let doing = match failures.any() {
            true => "reading from input",
            false => "writing to output",
        };
        error(format!(
            "error while {doing} image file: {}",
            errno::word(&failed)
        ))
    })
}
