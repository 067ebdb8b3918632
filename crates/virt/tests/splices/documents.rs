//! Domains as nobody would write them, but might: any quotes, blanks and line breaks, comments, processing instructions and
//! CDATA wherever they may stand, characters as references, and every element that a layer may have.

use crate::escaped;

/// What decides; where it ends, all is plain.
pub struct Choices<'a>(std::slice::Iter<'a, u8>);

impl<'a> Choices<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.iter())
    }

    fn one_of<T: Copy>(&mut self, things: &[T]) -> T {
        let byte = usize::from(self.0.next().copied().unwrap_or(0));
        things[byte % things.len()]
    }

    /// Once in a while.
    fn rarely(&mut self) -> bool {
        self.one_of(&[false, false, false, true])
    }
}

/// An element to be written.
#[derive(Clone)]
struct Node {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Node>,
    text: &'static str,
}

fn node(name: &'static str, attributes: &[(&'static str, &str)]) -> Node {
    Node {
        name,
        attributes: attributes
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect(),
        children: Vec::new(),
        text: "",
    }
}

impl Node {
    fn with(mut self, child: Node) -> Self {
        self.children.push(child);
        self
    }

    fn saying(mut self, text: &'static str) -> Self {
        self.text = text;
        self
    }
}

/// A layer of the disk that is changed.
pub struct Image<'a> {
    pub path: &'a str,
    pub format: &'static str,
}

/// What is below the last of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Open,
    Closed,
}

/// A domain whose first disk is on these images, among others. `odd` has whatever may stand anywhere in XML.
pub fn domain(choices: &mut Choices<'_>, images: &[Image<'_>], end: End, odd: bool) -> String {
    let mut devices = node("devices", &[]).with(disk(choices, images, end));
    for number in 0..choices.one_of(&[0, 1, 2]) {
        devices = devices.with(neighbour(choices, ["vdb", "vdc"][number]));
    }
    let group = node("throttlegroup", &[])
        .with(node("group_name", &[]).saying("slow"))
        .with(node("total_bytes_sec", &[]).saying("1000"));
    let domain = node("domain", &[("type", "qemu")])
        .with(node("name", &[]).saying("vm"))
        .with(node("memory", &[("unit", "MiB")]).saying("16"))
        .with(node("throttlegroups", &[]).with(group))
        .with(node("os", &[]).with(node("type", &[("arch", "x86_64")]).saying("hvm")))
        .with(devices)
        .with(
            node(
                "seclabel",
                &[("type", "static"), ("model", "dac"), ("relabel", "yes")],
            )
            .with(node("label", &[]).saying("+0:+0")),
        );
    let mut writer = Writer {
        line_break: choices.one_of(&["\n", "\r\n", ""]),
        unit: choices.one_of(&["  ", "\t", "    ", " "]),
        text: String::new(),
        odd,
        choices,
    };
    writer.text.push_str("<?xml version='1.0' encoding='UTF-8'?>");
    writer.element(&domain, 0);
    writer.junk();
    writer.text
}

fn disk(choices: &mut Choices<'_>, images: &[Image<'_>], end: End) -> Node {
    let mut nested = (end == End::Closed).then(|| node("backingStore", &[]));
    for image in images.iter().skip(1).rev() {
        let mut store = node("backingStore", &[("type", "file")]);
        if choices.rarely() {
            store.attributes.push(("index", "7".to_owned()));
        }
        store = store
            .with(cached(choices, node("format", &[("type", image.format)])))
            .with(source(choices, image, false));
        store.children.extend(nested);
        nested = Some(store);
    }
    let driver = node("driver", &[("name", "qemu"), ("type", images[0].format)]);
    let mut children = vec![cached(choices, driver), source(choices, &images[0], true)];
    children.extend(nested);
    if choices.rarely() {
        children.push(
            node("mirror", &[("type", "file"), ("job", "copy"), ("ready", "yes")])
                .with(node("format", &[("type", "raw")]))
                .with(node("source", &[("file", "/i/copy")])),
        );
    }
    if choices.rarely() {
        let filter = node("throttlefilter", &[("group", "slow")]);
        children.push(node("throttlefilters", &[]).with(filter));
    }
    let target = node("target", &[("dev", "vda"), ("bus", "virtio")]);
    children.insert(choices.one_of(&[children.len(), 0, 1, 2]), target);
    Node {
        children,
        ..node("disk", &[("type", "file"), ("device", "disk")])
    }
}

/// With a size for what is cached of its tables, where it has tables.
fn cached(choices: &mut Choices<'_>, format: Node) -> Node {
    let qcow2 = format.attributes.iter().any(|(_, value)| value == "qcow2");
    if qcow2 && choices.rarely() {
        let size = node("max_size", &[("unit", "KiB")]).saying("64");
        return format.with(node("metadata_cache", &[]).with(size));
    }
    format
}

fn source(choices: &mut Choices<'_>, image: &Image<'_>, active: bool) -> Node {
    let mut source = node("source", &[("file", image.path)]);
    if active && choices.rarely() {
        source.attributes.push(("startupPolicy", "optional".to_owned()));
    }
    if active && choices.rarely() {
        source.attributes.insert(0, ("index", "1".to_owned()));
    }
    if choices.rarely() {
        let label = node("seclabel", &[("model", "dac"), ("relabel", "no")]);
        source = source.with(label);
    }
    source
}

/// A disk that is not changed, of what the first may not be.
fn neighbour(choices: &mut Choices<'_>, target: &'static str) -> Node {
    let secret = node(
        "secret",
        &[
            ("type", "passphrase"),
            ("uuid", "11111111-2222-3333-4444-555555555555"),
        ],
    );
    let slice = node(
        "slice",
        &[("type", "storage"), ("offset", "512"), ("size", "1024")],
    );
    let source = |attributes: &[(&'static str, &str)]| node("source", attributes);
    let data = node("dataStore", &[("type", "file")])
        .with(node("format", &[("type", "raw")]))
        .with(source(&[("file", "/elsewhere/data")]));
    let reservations = node("reservations", &[("managed", "no")]).with(source(&[
        ("type", "unix"),
        ("path", "/run/pr.sock"),
        ("mode", "client"),
    ]));
    let (kind, format, source) = match choices.one_of(&[0, 1, 2, 3, 4, 5, 6, 7]) {
        0 => ("file", "qcow2", source(&[("file", "/elsewhere/a")]).with(data)),
        1 => (
            "file",
            "qcow2",
            source(&[("file", "/elsewhere/b")]).with(node("encryption", &[("format", "luks")]).with(secret)),
        ),
        2 => (
            "file",
            "raw",
            source(&[("file", "/elsewhere/c"), ("fdgroup", "files")]).with(node("slices", &[]).with(slice)),
        ),
        3 => (
            "network",
            "raw",
            source(&[("protocol", "https"), ("name", "/d"), ("query", "a=b&c")])
                .with(node("host", &[("name", "server"), ("port", "443")]))
                .with(node("ssl", &[("verify", "no")]))
                .with(
                    node("cookies", &[])
                        .with(node("cookie", &[("name", "one")]).saying("1"))
                        .with(node("cookie", &[("name", "two")]).saying("2")),
                ),
        ),
        4 => (
            "network",
            "raw",
            source(&[("protocol", "nfs"), ("name", "/d")])
                .with(node("host", &[("name", "server")]))
                .with(node("identity", &[("user", "+0"), ("group", "+0")])),
        ),
        5 => ("volume", "qcow2", source(&[("pool", "p"), ("volume", "v")])),
        6 => ("block", "raw", source(&[("dev", "/dev/null")]).with(reservations)),
        _ => ("dir", "fat", source(&[("dir", "/elsewhere/dir")])),
    };
    let device = if kind == "block" { "lun" } else { "disk" };
    let bus = if kind == "block" { "scsi" } else { "virtio" };
    let mut disk = node("disk", &[("type", kind), ("device", device)])
        .with(node("driver", &[("name", "qemu"), ("type", format)]))
        .with(source)
        .with(node("target", &[("dev", target), ("bus", bus)]));
    if kind == "dir" {
        disk = disk.with(node("readonly", &[]));
    }
    disk
}

struct Writer<'a, 'c> {
    choices: &'a mut Choices<'c>,
    text: String,
    line_break: &'static str,
    unit: &'static str,
    odd: bool,
}

impl Writer<'_, '_> {
    fn line(&mut self, depth: usize) {
        self.text.push_str(self.line_break);
        if !self.line_break.is_empty() {
            self.text.push_str(&self.unit.repeat(depth));
        }
    }

    /// What may stand anywhere between elements.
    fn junk(&mut self) {
        if !self.odd {
            return;
        }
        let junk = self.choices.one_of(&[
            "",
            "",
            "",
            "<!-- <backingStore/> type='x' -->",
            "<?keep <source file='/i/no'/> ?>",
            "<!--\n</disk>-->",
            " \t",
            "\n",
        ]);
        self.text.push_str(&self.broken(junk));
    }

    /// With this document's line breaks, or none.
    fn broken(&self, text: &str) -> String {
        text.replace('\n', self.line_break)
    }

    fn element(&mut self, node: &Node, depth: usize) {
        if depth > 0 || self.odd {
            self.junk();
        }
        self.line(depth);
        self.text.push('<');
        self.text.push_str(node.name);
        for (name, value) in &node.attributes {
            self.attribute(name, value);
        }
        let blank = if self.odd {
            self.choices.one_of(&["", "", " ", "\n", "\t"])
        } else {
            ""
        };
        self.text.push_str(&self.broken(blank));
        let empty = node.children.is_empty() && node.text.is_empty();
        if empty && !(self.odd && self.choices.rarely()) {
            self.text.push_str("/>");
            return;
        }
        self.text.push('>');
        if !node.text.is_empty() {
            let forms: &[(&str, &str)] = if self.odd {
                &[
                    ("", ""),
                    ("", ""),
                    ("<!-- x -->", ""),
                    ("<![CDATA[", "]]>"),
                    ("", "<?p x?>"),
                ]
            } else {
                &[("", "")]
            };
            let (before, behind) = self.choices.one_of(forms);
            self.text.extend([before, node.text, behind]);
        } else if empty {
            let inside = self
                .choices
                .one_of(&["", " ", "<!-- </source> -->", "<![CDATA[ ]]>"]);
            self.text.push_str(inside);
        }
        for child in &node.children {
            self.element(child, depth + 1);
        }
        if !node.children.is_empty() {
            self.junk();
            self.line(depth);
        }
        self.text.extend(["</", node.name]);
        if self.odd && self.choices.rarely() {
            self.text.push(' ');
        }
        self.text.push('>');
    }

    fn attribute(&mut self, name: &str, value: &str) {
        let (before, equals, quote) = if self.odd {
            (
                self.choices.one_of(&[" ", " ", "  ", "\t", "\n\t"]),
                self.choices.one_of(&["=", "=", "=", " = ", "\t="]),
                self.choices.one_of(&['\'', '"']),
            )
        } else {
            (" ", "=", '\'')
        };
        let before = match self.broken(before) {
            blank if blank.is_empty() => " ".to_owned(),
            blank => blank,
        };
        let mut written = escaped(value);
        if self.odd && self.choices.rarely() {
            written = written.replacen('/', "&#x2f;", 1).replacen('e', "&#101;", 1);
        }
        self.text
            .push_str(&format!("{before}{name}{equals}{quote}{written}{quote}"));
    }
}
