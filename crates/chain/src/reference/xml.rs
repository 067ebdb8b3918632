//! A source as libvirt's `<source>` element: attribute order, quotes, escapes and indentation as libvirt writes them
//! in live XML, so that texts can be compared.
//!
//! The `type` of the enclosing `<disk>` or `<backingStore>` is not part of it ([`Source::type_name`]); neither is the
//! format, which is an element of its own there.

use super::protocol::{Protocol, Transport};
use super::source::{Location, Network, Source};
use std::path::Path;

/// An element being written as libvirt writes it: attributes in single quotes, children indented by two spaces.
#[derive(Clone, Debug)]
pub struct XmlElement {
    name: &'static str,
    attributes: String,
    children: String,
    /// Whether something was left out because XML has no way to say it.
    lossy: bool,
}

impl XmlElement {
    /// An element without attributes and children.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            attributes: String::new(),
            children: String::new(),
            lossy: false,
        }
    }

    /// Adds an attribute, escaped as libvirt does.
    pub fn attribute(&mut self, name: &str, value: impl AsRef<str>) {
        self.attributes.push(' ');
        self.attributes.push_str(name);
        self.attributes.push_str("='");
        self.lossy |= !escape_xml(value.as_ref(), &mut self.attributes);
        self.attributes.push('\'');
    }

    /// Adds an attribute where there is a value.
    pub fn attribute_if(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.attribute(name, value);
        }
    }

    /// An attribute with a file's name, which need not be text.
    fn path(&mut self, name: &str, path: &Path) {
        self.lossy |= path.to_str().is_none();
        self.attribute(name, path.to_string_lossy());
    }

    /// Adds a child element.
    pub fn child(&mut self, child: &Self) {
        self.lossy |= child.lossy;
        for line in child.finish().lines() {
            self.children.push_str("  ");
            self.children.push_str(line);
            self.children.push('\n');
        }
    }

    /// Adds children that are written already, each line of them one of theirs. It is not read.
    pub fn written(&mut self, children: &str) {
        for line in children.lines() {
            self.children.push_str("  ");
            self.children.push_str(line);
            self.children.push('\n');
        }
    }

    /// Adds a child with text instead of children.
    pub fn child_text(&mut self, child: &Self, text: &str) {
        self.children
            .push_str(&format!("  <{}{}>", child.name, child.attributes));
        let exact = escape_xml(text, &mut self.children);
        self.lossy |= child.lossy || !exact;
        self.children.push_str(&format!("</{}>\n", child.name));
    }

    /// Adds a child with one attribute, where there is a value.
    pub fn leaf(&mut self, name: &'static str, attribute: &str, value: Option<&str>) {
        if let Some(value) = value {
            let mut child = Self::new(name);
            child.attribute(attribute, value);
            self.child(&child);
        }
    }

    /// Adds the `<slices>` of a source that is a part of its object.
    pub fn slices(&mut self, source: &Source) {
        if let Some(slice) = source.slice {
            let mut one = Self::new("slice");
            one.attribute("type", "storage");
            one.attribute("offset", slice.offset.to_string());
            one.attribute("size", slice.size.unwrap_or(0).to_string());
            let mut slices = Self::new("slices");
            slices.child(&one);
            self.child(&slices);
        }
    }

    /// The text, with a newline at the end.
    pub fn finish(&self) -> String {
        let Self {
            name,
            attributes,
            children,
            lossy: _,
        } = self;
        if children.is_empty() {
            format!("<{name}{attributes}/>\n")
        } else {
            format!("<{name}{attributes}>\n{children}</{name}>\n")
        }
    }
}

/// Escapes as libvirt does. Control characters that XML cannot hold are left out; `false` where there are some.
pub fn escape_xml(text: &str, into: &mut String) -> bool {
    let mut exact = true;
    for c in text.chars() {
        match c {
            '&' => into.push_str("&amp;"),
            '<' => into.push_str("&lt;"),
            '>' => into.push_str("&gt;"),
            '"' => into.push_str("&quot;"),
            '\'' => into.push_str("&apos;"),
            // A newline as such would be read back as a space, and break the lines that are indented here.
            '\n' => into.push_str("&#10;"),
            '\r' => into.push_str("&#13;"),
            '\t' => into.push_str("&#9;"),
            c if c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}') => exact = false,
            c => into.push(c),
        }
    }
    exact
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// A number where it is set.
fn set(number: u64) -> Option<String> {
    (number != 0).then(|| number.to_string())
}

impl Source {
    /// The `<source>` element libvirt would write for this source in live XML, with a newline at the end.
    ///
    /// Like libvirt's, it leaves out what XML cannot say: see [`Source::fits_libvirt_xml`].
    pub fn to_libvirt_xml(&self) -> String {
        let mut source = self.to_libvirt_element();
        source.slices(self);
        source.finish()
    }

    /// Whether the element says all of the names in it: none of them has control characters or is not UTF-8.
    pub fn fits_libvirt_xml(&self) -> bool {
        !self.to_libvirt_element().lossy
    }

    /// The `<source>` element without its `<slices>`, which stand behind other children: [`XmlElement::slices`].
    pub fn to_libvirt_element(&self) -> XmlElement {
        let mut source = XmlElement::new("source");
        match &self.location {
            Location::File(path) => source.path("file", path),
            Location::Block(path) => source.path("dev", path),
            Location::Dir(path) => source.path("dir", path),
            Location::Network(network) => write_network(network, &mut source),
            Location::Nvme(nvme) => {
                source.attribute("type", "pci");
                source.attribute("namespace", nvme.namespace.to_string());
                let mut address = XmlElement::new("address");
                address.attribute("domain", format!("{:#06x}", nvme.domain));
                address.attribute("bus", format!("{:#04x}", nvme.bus));
                address.attribute("slot", format!("{:#04x}", nvme.slot));
                address.attribute("function", format!("{:#x}", nvme.function));
                source.child(&address);
            }
        }
        source
    }
}

fn write_network(network: &Network, source: &mut XmlElement) {
    source.attribute("protocol", network.protocol.as_str());
    source.attribute_if("name", network.full_name().as_deref());
    source.attribute_if("query", network.query.as_deref());
    for host in &network.hosts {
        let mut element = XmlElement::new("host");
        element.attribute_if("name", host.name.as_deref());
        element.attribute_if("port", host.port.map(|port| port.to_string()).as_deref());
        if host.transport != Transport::Tcp {
            element.attribute("transport", host.transport.as_str());
        }
        element.attribute_if("socket", host.socket.as_deref());
        source.child(&element);
    }
    source.leaf("snapshot", "name", network.snapshot.as_deref());
    source.leaf("config", "file", network.config_file.as_deref());
    source.leaf("ssl", "verify", network.ssl_verify.map(yes_no));
    if !network.cookies.is_empty() {
        let mut cookies = XmlElement::new("cookies");
        for (name, value) in &network.cookies {
            let mut cookie = XmlElement::new("cookie");
            cookie.attribute("name", name);
            cookies.child_text(&cookie, value);
        }
        source.child(&cookies);
    }
    source.leaf("readahead", "size", set(network.readahead).as_deref());
    source.leaf("timeout", "seconds", set(network.timeout).as_deref());
    source.leaf("reconnect", "delay", set(network.reconnect_delay).as_deref());
    match network.protocol {
        Protocol::Nfs if network.nfs_user.is_some() || network.nfs_group.is_some() => {
            let mut identity = XmlElement::new("identity");
            identity.attribute_if("user", network.nfs_user.as_deref());
            identity.attribute_if("group", network.nfs_group.as_deref());
            source.child(&identity);
        }
        Protocol::Ssh => {
            let ssh = &network.ssh;
            source.leaf("knownHosts", "path", ssh.known_hosts.as_deref());
            if ssh.keyfile.is_some() || ssh.agent.is_some() {
                let mut identity = XmlElement::new("identity");
                identity.attribute_if("username", ssh.user.as_deref());
                identity.attribute_if("keyfile", ssh.keyfile.as_deref());
                identity.attribute_if("agentsock", ssh.agent.as_deref());
                source.child(&identity);
            }
        }
        _ => {}
    }
}
