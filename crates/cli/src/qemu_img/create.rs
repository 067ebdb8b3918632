//! `qemu-img create`, and the part of `convert` that makes the target.

use super::create_options::{self, Chosen, Use};
use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::keyval;
use super::nodes::{self, Node};
use super::objects::Objects;
use super::open::{self, Purpose};
use super::program::{self, Program, Result, error, usage};
use super::{errno, size};
use catena::ops::create::{self, Existing, Kind, Preallocation, Qcow2Options};
use catena::{ErrorKind, Format, Policy};
use catena_format::qcow2::{Compression, Version};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use std::error::Error as _;
use std::io;

pub const OPTIONS: Options = Options {
    short: "hqF:b:f:o:u",
    long: &[
        long("help", 'h', Nothing),
        long("quiet", 'q', Nothing),
        word("object", Argument),
        long("format", 'f', Argument),
        long("backing", 'b', Argument),
        long("backing-format", 'F', Argument),
        long("backing-unsafe", 'u', Nothing),
        long("options", 'o', Argument),
    ],
};

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let (mut format, mut quiet, mut unchecked) = ("raw".to_owned(), false, false);
    let (mut backing, mut backing_format, mut lists) = (None, None, None);
    let mut objects = Objects::default();
    let others = program::options(OPTIONS, words, |key, value| {
        match key {
            Key::Letter('f') => format = value,
            Key::Letter('b') => backing = Some(value),
            Key::Letter('F') => backing_format = Some(value),
            Key::Letter('o') => keyval::join(&mut lists, &value).map_err(error)?,
            Key::Letter('q') => quiet = true,
            Key::Letter('u') => unchecked = true,
            Key::Word("object") => objects.add(&value)?,
            _ => {}
        }
        Ok(())
    })?;
    let Some(others) = others else {
        return super::help::print(program);
    };
    let mut others = others.into_iter();
    let name = others.next();
    if lists.as_deref().is_some_and(keyval::asks_for_help) {
        return create_options::print_help(name.as_deref(), &format);
    }
    let name = name.ok_or_else(|| usage("Expecting image file name"))?;
    let bytes = others
        .next()
        .map(|text| size::argument("image size", &text, 0, size::MAX).map_err(error))
        .transpose()?;
    if let Some(more) = others.next() {
        return Err(usage(format!("Unexpected argument: {more}")));
    }
    let made = Order {
        name: &name,
        format: &format,
        lists: lists.as_deref(),
        size: bytes,
        backing,
        backing_format,
        unchecked,
    }
    .vet();
    let order = made.map_err(|text| error(format!("{name}: {text}")))?;
    if !quiet {
        program::print(&order.announcement());
    }
    order.make().map_err(|text| error(format!("{name}: {text}")))?;
    Ok(0)
}

/// A new image as the command line asks for it.
pub struct Order<'a> {
    /// Its file.
    pub name: &'a str,
    /// Its format.
    pub format: &'a str,
    /// `-o`
    pub lists: Option<&'a str>,
    /// Its size.
    pub size: Option<u64>,
    /// `-b`
    pub backing: Option<String>,
    /// `-F`
    pub backing_format: Option<String>,
    /// `-u`
    pub unchecked: bool,
}

/// A new image whose options make sense one by one.
pub struct Vetted {
    name: String,
    format: String,
    /// Its options.
    pub chosen: Chosen,
    unchecked: bool,
}

impl Order<'_> {
    /// Reads the options, and looks at the backing image. An error is what follows the name.
    pub fn vet(self) -> Result<Vetted, String> {
        create_options::creatable(self.format)?;
        // Only `file:` says where a new file can be.
        if let Some(protocol) = nodes::protocol_of(self.name)
            && protocol != "file"
        {
            return Err(format!("Unknown protocol '{protocol}'"));
        }
        let mut chosen = Chosen::of(self.format, Use::Create);
        if let Some(lists) = self.lists {
            chosen.parse(lists)?;
        }
        if let Some(size) = self.size {
            if chosen.get("size").is_some() {
                return Err("The image size must be specified only once".to_owned());
            }
            chosen.set("size", size.to_string())?;
        }
        let format = self.format;
        if let Some(backing) = self.backing {
            chosen
                .set("backing_file", backing)
                .map_err(|_| format!("Backing file not supported for file format '{format}'"))?;
        }
        if let Some(backing_format) = self.backing_format {
            chosen
                .set("backing_fmt", backing_format)
                .map_err(|_| format!("Backing file format not supported for file format '{format}'"))?;
        }
        if let Some(backing) = chosen.get("backing_file").map(str::to_owned) {
            if backing.is_empty() {
                return Err("Expected backing file name, got empty string".to_owned());
            }
            if backing == self.name {
                return Err(
                    "Error: Trying to create an image with the same filename as the backing file".to_owned(),
                );
            }
            let backing_format = chosen.get("backing_fmt").map(str::to_owned);
            let without = "Backing file specified without backing format";
            if self.unchecked {
                if backing_format.is_none() {
                    return Err(without.to_owned());
                }
            } else {
                let (found, size) = look_at(self.name, &backing, backing_format.as_deref())
                    .map_err(|text| format!("{text}\nCould not open backing image."))?;
                if backing_format.is_none() {
                    return Err(format!("{without}\nDetected format of {found}."));
                }
                if chosen.get("size").is_none() {
                    chosen.set("size", size.to_string())?;
                }
            }
        }
        if chosen.get("size").is_none() {
            return Err("Image creation needs a size parameter".to_owned());
        }
        Ok(Vetted {
            name: self.name.to_owned(),
            format: self.format.to_owned(),
            chosen,
            unchecked: self.unchecked,
        })
    }
}

/// Opens the backing image of a new one: its format and size.
fn look_at(name: &str, backing: &str, format: Option<&str>) -> Result<(&'static str, u64), String> {
    let full = nodes::beside(name, backing);
    let node = Node::named(&full, format)?;
    let opened = open::open_node(
        node,
        Purpose {
            shared: true,
            no_io: true,
            ..Purpose::default()
        },
    )?;
    let size = opened
        .top()
        .map_err(|_| String::new())?
        .virtual_size()
        .unwrap_or_default();
    Ok((opened.driver(), size.next_multiple_of(512)))
}

impl Vetted {
    /// One whose options the caller has read, and whose backing image nobody looks at.
    pub fn of(name: &str, format: &str, chosen: Chosen) -> Self {
        Self {
            name: name.to_owned(),
            format: format.to_owned(),
            chosen,
            unchecked: true,
        }
    }

    /// The format.
    pub fn format(&self) -> &str {
        &self.format
    }

    /// The line that says what is made.
    pub fn announcement(&self) -> String {
        format!(
            "Formatting '{}', fmt={} {}\n",
            self.name,
            self.format,
            self.chosen.line()
        )
    }

    /// Bytes of the new disk.
    pub fn size(&self) -> u64 {
        self.chosen.size("size").unwrap_or_default()
    }

    /// The file's name.
    pub fn path(&self) -> &str {
        self.name.strip_prefix("file:").unwrap_or(&self.name)
    }

    /// What the library is asked to create. An error is what follows the name.
    pub fn kind(&self) -> Result<(Kind, Preallocation), String> {
        let preallocation = self.preallocation();
        if self.format != "qcow2" {
            return match preallocation {
                Err(()) => Err(format!(
                    "invalid parameter value: {}",
                    self.chosen.get("preallocation").unwrap_or_default()
                )),
                Ok(Preallocation::Metadata) => Err("Unsupported preallocation mode: metadata".to_owned()),
                Ok(preallocation) => Ok((Kind::Raw, preallocation)),
            };
        }
        let (options, preallocation) = qcow2_options(&self.chosen, self.unchecked, preallocation)?;
        Ok((Kind::Qcow2(Box::new(options)), preallocation))
    }

    fn preallocation(&self) -> Result<Preallocation, ()> {
        preallocation(self.chosen.get("preallocation").unwrap_or("off")).ok_or(())
    }

    /// Makes it. An error is what follows the name.
    pub fn make(&self) -> Result<(), String> {
        self.make_by(create::Plan::execute)
    }

    /// The same, of which nothing is made durable.
    pub fn make_unsynced(&self) -> Result<(), String> {
        self.make_by(create::Plan::execute_unsynced)
    }

    fn make_by(&self, execute: impl Fn(&create::Plan) -> catena::Result<()>) -> Result<(), String> {
        can_create(self.path())?;
        let (kind, preallocation) = self.kind()?;
        let is_tables = matches!(kind, Kind::Qcow2(_)) && preallocation == Preallocation::Off;
        let request = create::Request {
            path: self.path().into(),
            existing: Existing::Overwrite,
            size: Some(self.size()),
            kind,
            preallocation,
        };
        let plan = create::plan(&request, &Policy::qemu()).map_err(|failed| self.explain(&failed))?;
        execute(&plan).map_err(|failed| match failed.kind() {
            ErrorKind::NoSpace => format!("{}{}", self.no_space(preallocation), errno::word(&failed)),
            _ => self.explain(&failed),
        })?;
        if is_tables {
            self.fill();
        }
        Ok(())
    }

    /// What QEMU was at where there was no space left.
    fn no_space(&self, preallocation: Preallocation) -> String {
        match (self.format.as_str(), preallocation) {
            (_, Preallocation::Off) => String::new(),
            ("qcow2", Preallocation::Metadata) => {
                "Could not resize image: Allocating clusters failed: ".to_owned()
            }
            ("qcow2", _) => format!(
                "Could not resize image: Failed to resize underlying file: {}: ",
                not_preallocated(preallocation)
            ),
            _ => format!("{}: ", not_preallocated(preallocation)),
        }
    }

    /// Gives the tables of a new image their space, as QEMU does, which writes them whole: it takes an image with too many holes for
    /// one whose clusters were allocated ahead.
    fn fill(&self) {
        let options = OpenOptions::new().write(true).lock(LockMode::None);
        let Ok(file) = LocalFile::open(std::path::Path::new(self.path()), &options) else {
            return;
        };
        if let Ok(len) = file.len() {
            // Without the space the image is as good.
            let _ = file.allocate(0, len);
        }
    }

    /// What QEMU says where the library says this.
    pub fn explain(&self, failed: &catena::Error) -> String {
        let too_large = || {
            let hint = match self.format.as_str() {
                "qcow2" => " (try using a larger cluster size)",
                _ => "",
            };
            format!(
                "The image size is too large for file format '{}'{hint}",
                self.format
            )
        };
        const EFBIG: i32 = 27;
        const EINVAL: i32 = 22;
        match system_error(failed).and_then(io::Error::raw_os_error) {
            Some(EFBIG) => return too_large(),
            Some(EINVAL) if self.format == "raw" => {
                return "Could not resize file: Invalid argument".to_owned();
            }
            _ => {}
        }
        if failed.kind() == ErrorKind::TooLarge {
            return too_large();
        }
        translate(failed, self.path())
    }
}

/// What QEMU was at where a file cannot be given its space.
pub fn not_preallocated(how: Preallocation) -> &'static str {
    match how {
        Preallocation::Full => "Could not write zeros for preallocation",
        _ => "Could not preallocate new data",
    }
}

/// Whether a file can be made there, before anything else is looked at.
fn can_create(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("Could not create '': No such file or directory".to_owned());
    }
    let path = std::path::Path::new(name);
    let failed = match path.metadata() {
        Ok(meta) if meta.is_dir() => return Err(format!("Could not create '{name}': Is a directory")),
        Ok(_) => return Ok(()),
        Err(_) => match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.metadata().err(),
            _ => None,
        },
    };
    match failed {
        Some(failed) => Err(format!(
            "Could not create '{name}': {}",
            open::system_word(&failed)
        )),
        None => Ok(()),
    }
}

/// The error of the system underneath, where there is one.
pub fn system_error(failed: &catena::Error) -> Option<&io::Error> {
    let mut source = failed.source();
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        source = error.source();
    }
    None
}

/// A library's error in QEMU's words where it has some: a lock that is held, or the system's word.
pub fn translate(failed: &catena::Error, name: &str) -> String {
    let text = failed.full();
    if let Some((_, behind)) = text.split_once("Failed to get ")
        && let Some((what, _)) = behind.split_once(" lock:")
    {
        return format!("Failed to get {what} lock\nIs another process using the image [{name}]?");
    }
    match system_error(failed) {
        Some(io) if failed.kind() == ErrorKind::NoSpace => open::system_word(io),
        _ => text,
    }
}

/// A mode of preallocation.
pub fn preallocation(word: &str) -> Option<Preallocation> {
    Some(match word {
        "off" => Preallocation::Off,
        "metadata" => Preallocation::Metadata,
        "falloc" => Preallocation::Falloc,
        "full" => Preallocation::Full,
        _ => return None,
    })
}

fn no_value(parameter: &str, value: &str) -> String {
    format!("Parameter '{parameter}' does not accept value '{value}'")
}

/// The options of a qcow2 image, in the order in which QEMU finds fault with them.
fn qcow2_options(
    chosen: &Chosen,
    unchecked: bool,
    preallocation: Result<Preallocation, ()>,
) -> Result<(Qcow2Options, Preallocation), String> {
    let version = match chosen.get("compat") {
        None | Some("1.1" | "v3") => Version::V3,
        Some("0.10" | "v2") => Version::V2,
        Some(other) => return Err(no_value("version", other)),
    };
    let backing_file = chosen.get("backing_file");
    let backing_format = chosen
        .get("backing_fmt")
        .map(|word| Format::from_qemu(word).ok_or_else(|| no_value("backing-fmt", word)))
        .transpose()?;
    check_encryption(chosen)?;
    let preallocation = preallocation
        .map_err(|()| no_value("preallocation", chosen.get("preallocation").unwrap_or_default()))?;
    let compression = match chosen.get("compression_type") {
        None | Some("zlib") => Compression::Deflate,
        Some("zstd") => Compression::Zstd,
        Some(other) => return Err(no_value("compression-type", other)),
    };
    let cluster_size = chosen.size("cluster_size").unwrap_or(65_536);
    let extended_l2 = chosen.switch("extended_l2").unwrap_or_default();
    let old = version == Version::V2;
    let newer = "(use version=v3 or greater)";
    check_cluster_size(cluster_size, extended_l2, old)?;
    if backing_file.is_some() && preallocation != Preallocation::Off && !extended_l2 {
        return Err(
            "Backing file and preallocation can only be used at the same time if extended_l2 is on"
                .to_owned(),
        );
    }
    if backing_format.is_some() && backing_file.is_none() {
        return Err("Backing format cannot be used without backing file".to_owned());
    }
    let lazy_refcounts = chosen.switch("lazy_refcounts").unwrap_or_default();
    if lazy_refcounts && old {
        return Err(format!(
            "Lazy refcounts only supported with compatibility level 1.1 and above {newer}"
        ));
    }
    let refcount_bits = check_refcount_bits(chosen.number("refcount_bits").unwrap_or(16), old)?;
    let data_file = chosen.get("data_file");
    let data_file_raw = chosen.switch("data_file_raw").unwrap_or_default();
    if data_file_raw && data_file.is_none() {
        return Err("data-file-raw requires data-file".to_owned());
    }
    if data_file_raw && backing_file.is_some() {
        return Err("Backing file and data-file-raw cannot be used at the same time".to_owned());
    }
    if data_file.is_some() && old {
        return Err(format!(
            "External data files are only supported with compatibility level 1.1 and above {newer}"
        ));
    }
    if compression == Compression::Zstd && old {
        return Err(format!(
            "Non-zlib compression type is only supported with compatibility level 1.1 and above {newer}"
        ));
    }
    let options = Qcow2Options {
        backing: backing_file.map(|name| (name.to_owned(), backing_format.unwrap_or(Format::Raw))),
        stamp: false,
        unchecked_backing: unchecked,
        version,
        cluster_size,
        refcount_bits,
        lazy_refcounts,
        extended_l2,
        compression,
        data_file: data_file.map(|name| (name.to_owned(), data_file_raw)),
    };
    Ok((options, preallocation))
}

/// Cluster size and what depends on it.
pub fn check_cluster_size(cluster_size: u64, extended_l2: bool, old: bool) -> Result<(), String> {
    if extended_l2 && old {
        return Err(
            "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)"
                .to_owned(),
        );
    }
    if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
        return Err("Cluster size must be a power of two between 512 and 2048k".to_owned());
    }
    if extended_l2 && cluster_size < 16_384 {
        return Err(
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes".to_owned(),
        );
    }
    Ok(())
}

/// The sentence for a refcount width that an old version does not have.
const DIFFERENT_WIDTH: &str = "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)";

/// A refcount width.
pub fn check_refcount_bits(bits: u64, old: bool) -> Result<u32, String> {
    let width = u32::try_from(bits)
        .ok()
        .filter(|bits| bits.is_power_of_two() && *bits <= 64);
    let width = width.ok_or("Refcount width must be a power of two and may not exceed 64 bits")?;
    if width != 16 && old {
        return Err(DIFFERENT_WIDTH.to_owned());
    }
    Ok(width)
}

fn check_encryption(chosen: &Chosen) -> Result<(), String> {
    let format = match chosen.get("encrypt.format") {
        Some(format @ ("luks" | "aes" | "qcow")) => Some(format),
        Some(other) => return Err(no_value("format", other)),
        None => chosen.switch("encryption").filter(|on| *on).map(|_| "aes"),
    };
    match (format, chosen.get("encrypt.key-secret")) {
        (None, _) => Ok(()),
        (Some(_), None) => Err("Parameter 'encrypt.key-secret' is required for cipher".to_owned()),
        (Some(_), Some(secret)) => Err(format!("No secret with id '{secret}'")),
    }
}
