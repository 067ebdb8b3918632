//! `qemu-img bench`: how long so many requests take.

use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::image_args::ImageArgs;
use super::open::Purpose;
use super::options::{self, Cache};
use super::program::{self, Program, Result, error, usage};
use super::target::Target as OpenTarget;
use super::{errno, help, number, size};
use catena::ops::Silent;
use catena::ops::bench::{self, Request, Target, Write};

const OPTIONS: Options = Options {
    short: "hc:d:f:ni:o:qs:S:t:wU",
    long: &[
        long("help", 'h', Nothing),
        long("format", 'f', Argument),
        word("image-opts", Nothing),
        long("cache", 't', Argument),
        long("count", 'c', Argument),
        long("depth", 'd', Argument),
        long("offset", 'o', Argument),
        long("buffer-size", 's', Argument),
        long("step-size", 'S', Argument),
        long("aio", 'i', Argument),
        long("native", 'n', Nothing),
        long("write", 'w', Nothing),
        word("pattern", Argument),
        word("flush-interval", Argument),
        word("no-drain", Nothing),
        long("force-share", 'U', Nothing),
    ],
};

/// Largest number of most options.
const MOST: u64 = i32::MAX as u64;

/// What the command line says.
struct Said {
    count: u64,
    depth: u64,
    offset: u64,
    bytes: u64,
    step: u64,
    write: bool,
    pattern: u64,
    flush_interval: u64,
    native: bool,
    direct: bool,
    image: ImageArgs,
}

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let mut said = Said {
        count: 75_000,
        depth: 64,
        offset: 0,
        bytes: 4096,
        step: 0,
        write: false,
        pattern: 0,
        flush_interval: 0,
        native: false,
        direct: false,
        image: ImageArgs::default(),
    };
    let others = program::options(OPTIONS, words, |key, value| said.take(key, value))?;
    let Some(others) = others else {
        return help::print(program);
    };
    let [name] = others.as_slice() else {
        return Err(usage("Expecting one image file name"));
    };
    if !said.write && said.flush_interval > 0 {
        return Err(error("--flush-interval is only available in write tests"));
    }
    if said.flush_interval > 0 && said.flush_interval < said.depth {
        return Err(error("Flush interval can't be smaller than depth"));
    }
    let purpose = Purpose {
        write: said.write,
        ..Purpose::default()
    };
    if said.native && !said.direct {
        said.refuse_native(name)?;
    }
    let opened = said.image.open(program, name, purpose)?;
    said.announce();
    let size = opened.top()?.virtual_size().unwrap_or_default();
    if said.offset.checked_add(said.bytes).is_none_or(|end| end > size) {
        // The first request goes where it was told; only those behind it go back to the start.
        return Err(error("Failed request: Input/output error"));
    }
    let request = said.request();
    let taken = if said.write {
        let target = OpenTarget::open(&opened)?;
        let taken = bench::bench(&request, Target::Write(&*target.disk), &Silent);
        taken.and_then(|taken| target.finish().map(|()| taken))
    } else {
        let disk = opened.disk()?;
        bench::bench(&request, Target::Read(&disk), &Silent)
    };
    let taken = taken.map_err(|failed| error(format!("Failed request: {}", errno::word(&failed))))?;
    program::print(&format!(
        "Run completed in {:3.3} seconds.\n",
        taken.as_secs_f64()
    ));
    Ok(0)
}

impl Said {
    fn take(&mut self, key: Key, value: String) -> Result<()> {
        let count = |name: &str, min: u64, max: u64| number::argument(name, &value, min, max).map_err(error);
        match key {
            Key::Letter('c') => self.count = count("request count", 1, MOST)?,
            Key::Letter('d') => self.depth = count("queue depth", 1, MOST)?,
            Key::Letter('o') => {
                self.offset = size::argument("offset", &value, 0, size::MAX).map_err(error)?
            }
            Key::Letter('s') => self.bytes = size::argument("buffer size", &value, 1, MOST).map_err(error)?,
            Key::Letter('S') => self.step = size::argument("step size", &value, 0, MOST).map_err(error)?,
            Key::Letter('n') => self.native = true,
            Key::Letter('i') => match value.as_str() {
                "native" => self.native = true,
                "threads" | "io_uring" => self.native = false,
                other => return Err(error(format!("Invalid aio option: {other}"))),
            },
            Key::Letter('t') => {
                options::cache_mode(&value, Cache::Target).map_err(|_| error("Invalid cache mode"))?;
                self.direct = matches!(value.as_str(), "none" | "off" | "directsync");
            }
            Key::Letter('w') => self.write = true,
            Key::Word("pattern") => self.pattern = count("pattern byte", 0, 255)?,
            Key::Word("flush-interval") => self.flush_interval = count("flush interval", 0, MOST)?,
            _ => self.image.take(key, value)?,
        }
        Ok(())
    }

    /// QEMU reads past the host's cache or not natively at all. That the file is there is looked at first.
    fn refuse_native(&self, name: &str) -> Result<()> {
        if self.image.image_opts || !std::path::Path::new(name).exists() {
            return Ok(());
        }
        Err(error(format!(
            "Could not open '{name}': aio=native was specified, but it requires cache.direct=on, which was not specified."
        )))
    }

    fn step(&self) -> u64 {
        if self.step == 0 { self.bytes } else { self.step }
    }

    fn announce(&self) {
        let what = if self.write { "write" } else { "read" };
        program::print(&format!(
            "Sending {} {what} requests, {} bytes each, {} in parallel (starting at offset {}, step size {})\n",
            self.count,
            self.bytes,
            self.depth,
            self.offset,
            self.step()
        ));
        if self.flush_interval > 0 {
            program::print(&format!("Sending flush every {} requests\n", self.flush_interval));
        }
    }

    fn request(&self) -> Request {
        Request {
            count: self.count,
            depth: usize::try_from(self.depth).unwrap_or(usize::MAX),
            bytes: usize::try_from(self.bytes).unwrap_or(usize::MAX),
            offset: self.offset,
            step: Some(self.step()),
            write: self.write.then(|| Write {
                pattern: u8::try_from(self.pattern).unwrap_or_default(),
                flush_interval: self.flush_interval,
            }),
        }
    }
}
