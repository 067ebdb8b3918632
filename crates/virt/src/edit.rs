//! Changing a document: splices into the text, so that every byte the change is not about stays what it is.
//!
//! What is written new takes its quotes and its indentation from where it is put. Each change is made of a document that
//! was read, and gives a text; that text reads as a document that says what was asked for, and nothing else changed.

use crate::model::{Below, Disk, Document, Layer as XmlLayer};
use crate::snapshot::check_showable;
use crate::write;
use catena::Chain;
use catena::chain::{End, Layer, OpenEnd};
use catena::reference::{Location, Source, escape_xml};
use catena_format::Format;
use std::ops::Range;
use std::path::Path;

/// Why a document cannot be changed so: a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EditError(String);

type Result<T> = std::result::Result<T, EditError>;

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(EditError(message.into()))
}

/// A stretch of the text, and what is to stand there instead.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Splice {
    at: Range<usize>,
    text: String,
}

/// Changes of one document, gathered.
#[derive(Clone, Debug)]
pub struct Edit<'a> {
    document: &'a Document,
    splices: Vec<Splice>,
}

impl<'a> Edit<'a> {
    /// No change.
    pub fn new(document: &'a Document) -> Self {
        Self {
            document,
            splices: Vec::new(),
        }
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.splices.is_empty()
    }

    /// The changed text.
    ///
    /// # Errors
    ///
    /// Where two changes are about one place.
    pub fn finish(mut self) -> Result<String> {
        let text = self.document.text();
        // What is put in front of a stretch stands before what is there instead of it.
        self.splices
            .sort_by_key(|splice| (splice.at.start, splice.at.end));
        let mut changed = String::with_capacity(text.len());
        let mut done = 0;
        for splice in &self.splices {
            let Some(kept) = text.get(done..splice.at.start) else {
                return refuse("two changes are about the same place of the document");
            };
            changed.push_str(kept);
            changed.push_str(&splice.text);
            done = splice.at.end;
        }
        changed.push_str(text.get(done..).unwrap_or_default());
        Ok(changed)
    }

    /// Writes what was detected below the layers that the XML gives, and data files; the end stays open, so that libvirt
    /// goes on looking below the last layer.
    ///
    /// # Errors
    ///
    /// Where a layer cannot be said in XML.
    pub fn complete(&mut self, disk: &Disk, chain: &Chain) -> Result<()> {
        self.fill_in(disk, chain, false)
    }

    /// Writes the whole chain and its end, so that libvirt looks at no header any more.
    ///
    /// # Errors
    ///
    /// Where the chain is not known to its end, or a layer cannot be said in XML.
    pub fn pin(&mut self, disk: &Disk, chain: &Chain) -> Result<()> {
        match &chain.end {
            End::Terminated => self.fill_in(disk, chain, true),
            End::Broken(broken) => refuse(format!(
                "the chain of '{}' is broken: {}",
                disk.name(),
                broken.error
            )),
            End::OpenEnded(OpenEnd::NotTraversable) => refuse(format!(
                "where the chain of '{}' ends is not known: its last layer is not on this host; \
                 'catena xml set-backing --none' closes it",
                disk.name()
            )),
            End::OpenEnded(OpenEnd::Credentials(_)) => refuse(format!(
                "the chain of '{}' goes on by a reference with credentials, which XML does not take; give them as <auth>",
                disk.name()
            )),
        }
    }

    fn fill_in(&mut self, disk: &Disk, chain: &Chain, close: bool) -> Result<()> {
        for (given, layer) in disk.layers.iter().zip(&chain.layers) {
            if given.data_store.is_none()
                && let Some(store) = layer.data_file.as_ref().and_then(|file| file.source.as_ref())
            {
                let element = write::data_store(store);
                self.add_to_source(given, &element)?;
            }
        }
        if matches!(disk.below, Below::Closed(_)) {
            return Ok(());
        }
        let mut nested = close.then(|| "<backingStore/>\n".to_owned());
        for layer in chain.layers.iter().skip(disk.layers.len()).rev() {
            nested = Some(detected(layer, nested.as_deref())?);
        }
        if let (Some(nested), Some(last)) = (nested, disk.layers.last()) {
            self.behind_source(last, &nested)?;
        }
        Ok(())
    }

    /// Takes the chain out of a disk: libvirt looks for it below the active layer.
    pub fn strip(&mut self, disk: &Disk) {
        for span in &disk.stores {
            let start = lead(self.document.text(), span.start).map_or(span.start, |lead| lead.start);
            self.splice(start..span.end, String::new());
        }
    }

    /// Puts an image below a layer, instead of what the XML has there; `None` ends the chain there.
    ///
    /// # Errors
    ///
    /// Where there is no such layer, or the image cannot be said in XML.
    pub fn set_backing(
        &mut self,
        disk: &Disk,
        number: usize,
        backing: Option<(&Source, Format)>,
    ) -> Result<()> {
        let above = layer(disk, number)?;
        let text = match backing {
            None => "<backingStore/>\n".to_owned(),
            Some((source, format)) => {
                checked(source, format)?;
                write::backing_store(source, format, None, None, None)
            }
        };
        let old = match (disk.layers.get(number + 1), &disk.below) {
            (Some(below), _) => Some(below.spans.element.clone()),
            (None, Below::Closed(span)) => Some(span.clone()),
            (None, Below::Unsaid) => None,
        };
        match old {
            Some(span) => {
                let text = self.fitted(above, &text);
                self.splice(span, text.trim().to_owned());
                Ok(())
            }
            None => self.behind_source(above, &text),
        }
    }

    /// Gives a layer another image or another format. What else the XML says of the layer stays.
    ///
    /// # Errors
    ///
    /// Where there is no such layer; where the new image is of another type, and `<source>` says more than the place.
    pub fn replace(
        &mut self,
        disk: &Disk,
        number: usize,
        source: Option<&Source>,
        format: Option<Format>,
    ) -> Result<()> {
        let old = layer(disk, number)?;
        if let Some(source) = source {
            checked(source, format.or(old.format).unwrap_or(Format::Raw))?;
            self.replace_source(old, source)?;
        }
        if let Some(format) = format {
            if format == Format::Luks {
                return refuse("a LUKS container is format 'raw' with an <encryption> to libvirt");
            }
            self.replace_format(disk, old, format)?;
        }
        Ok(())
    }

    fn replace_source(&mut self, old: &XmlLayer, source: &Source) -> Result<()> {
        let Some(span) = &old.spans.source else {
            return refuse("the layer has no <source> to be replaced");
        };
        let same_type = old.type_name() == source.type_name();
        if let (true, Some(place), Some(path)) = (same_type, &old.spans.path, source.path()) {
            if old.source().is_some_and(|old| old.slice != source.slice) && source.slice.is_some() {
                return refuse("a part of an image cannot be put in place of a whole one");
            }
            let value = escaped(path)?;
            self.splice(place.clone(), value);
            return Ok(());
        }
        let details = &old.details;
        if details.auth.is_some()
            || details.encryption.is_some()
            || details.reservations.is_some()
            || !details.seclabels.is_empty()
            || old.data_store.is_some()
        {
            return refuse(format!(
                "the layer's <source> says more than where it is, which an image of type '{}' may not have",
                source.type_name()
            ));
        }
        let Some(kind) = &old.spans.kind else {
            return refuse("the element has no type attribute that could be changed");
        };
        let mut element = source.to_libvirt_element();
        element.slices(source);
        let text = self.fitted(old, &element.finish());
        self.splice(kind.clone(), source.type_name().to_owned());
        self.splice(span.clone(), text.trim().to_owned());
        Ok(())
    }

    fn replace_format(&mut self, disk: &Disk, old: &XmlLayer, format: Format) -> Result<()> {
        let word = format.libvirt().to_owned();
        if let Some(place) = &old.spans.format {
            self.splice(place.clone(), word);
            return Ok(());
        }
        // Only the active layer may be without one: it stands in <driver>.
        match &disk.driver.span {
            Some(span) => {
                let at = span.start + "<driver".len();
                let text = self.quoted(old, format!(" type='{word}'"));
                self.splice(at..at, text);
            }
            None => {
                let Some(span) = &old.spans.source else {
                    return refuse("the disk has neither <driver> nor <source>");
                };
                let line = lead(self.document.text(), span.start).map_or("", |lead| lead.text);
                let text = self.quoted(old, format!("<driver name='qemu' type='{word}'/>{line}"));
                self.splice(span.start..span.start, text);
            }
        }
        Ok(())
    }

    /// Rewrites the paths in one folder to lie in another: of every layer, data file, snapshot overlay and volume that the
    /// document names. The number of paths.
    ///
    /// # Errors
    ///
    /// Where a path cannot be said in XML.
    pub fn relocate(&mut self, from: &Path, to: &Path) -> Result<usize> {
        let document = self.document;
        let disks = document.disks.iter().flat_map(|disk| &disk.layers);
        let snapshots = document
            .snapshot_disks
            .iter()
            .filter_map(|disk| disk.layer.as_ref());
        let mut count = 0;
        for layer in disks.chain(snapshots) {
            for layer in std::iter::once(layer).chain(layer.data_store.as_deref()) {
                let (Some(place), Some(path)) = (&layer.spans.path, layer.source().and_then(Source::path))
                else {
                    continue;
                };
                let Ok(rest) = path.strip_prefix(from) else {
                    continue;
                };
                let moved = if rest.as_os_str().is_empty() {
                    to.to_owned()
                } else {
                    to.join(rest)
                };
                let value = escaped(&moved)?;
                self.splice(place.clone(), value);
                count += 1;
            }
        }
        Ok(count)
    }

    /// Puts an overlay over a disk's active layer. Where the document says more of that than a header does, or of what is below,
    /// it is said as the overlay's `<backingStore>` from then on; else libvirt finds it in the headers.
    ///
    /// # Errors
    ///
    /// Where the disk has no image, or its guest would not see the same in the overlay; where a layer cannot be said in XML.
    pub fn put_over(&mut self, disk: &Disk, overlay: &Source, format: Format) -> Result<()> {
        check_showable(disk).map_err(|error| EditError(error.to_string()))?;
        let active = layer(disk, 0)?;
        checked(overlay, format)?;
        let details = &active.details;
        let below = match (disk.layers.get(1), &disk.below) {
            (Some(below), _) => Some(below.spans.element.clone()),
            (None, Below::Closed(span)) => Some(span.clone()),
            (None, Below::Unsaid) => None,
        };
        if below.is_some() || active.data_store.is_some() || !details.seclabels.is_empty() {
            let mut lowered = active.clone();
            // That is said of a drive, not of a layer.
            lowered.details.startup_policy = None;
            let text = write::given_backing_store(&lowered, write::Indices::default(), None);
            self.around_below(active, below, &text)?;
        }
        let same_type = active.type_name() == overlay.type_name();
        if same_type && active.data_store.is_none() {
            self.replace_source(active, overlay)?;
        } else {
            let (Some(kind), Some(_)) = (&active.spans.kind, &active.spans.source) else {
                return refuse("the disk has no <source> or type that could be changed");
            };
            let mut raised = active.clone();
            raised.place = crate::model::Place::Image(overlay.clone());
            raised.data_store = None;
            raised.details.reservations = None;
            let text = write::given_source(&raised, write::Indices::default()).finish();
            if !same_type {
                self.splice(kind.clone(), overlay.type_name().to_owned());
            }
            self.rewrite_source(active, &text);
        }
        self.replace_format(disk, active, format)
    }

    /// Puts a written `<backingStore>` around what stands below the active layer, which keeps every byte.
    fn around_below(&mut self, active: &XmlLayer, below: Option<Range<usize>>, text: &str) -> Result<()> {
        const CLOSE: &str = "</backingStore>";
        let Some(below) = below else {
            return self.behind_source(active, text);
        };
        let fitted = self.fitted(active, text);
        let Some(open) = fitted.trim().strip_suffix(CLOSE) else {
            return refuse("the layer has nothing that could stand in a <backingStore>");
        };
        let line = lead(self.document.text(), below.start).map_or("", |lead| lead.text);
        self.splice(below.start..below.start, format!("{}{line}", open.trim_end()));
        self.splice(below.end..below.end, format!("{line}{CLOSE}"));
        Ok(())
    }

    /// Replaces a layer's whole `<source>` by one that is written already.
    pub(crate) fn rewrite_source(&mut self, layer: &XmlLayer, text: &str) {
        if let Some(span) = layer.spans.source.clone() {
            let text = self.fitted(layer, text);
            self.splice(span, text.trim().to_owned());
        }
    }

    /// Replaces what is below the active layer.
    pub(crate) fn rewrite_below(&mut self, disk: &Disk, text: Option<&str>) -> Result<()> {
        self.strip(disk);
        match (disk.layers.first(), text) {
            (Some(active), Some(text)) => self.behind_source(active, text),
            _ => Ok(()),
        }
    }

    fn splice(&mut self, at: Range<usize>, text: String) {
        self.splices.push(Splice { at, text });
    }

    /// Puts an element behind a layer's `<source>`.
    fn behind_source(&mut self, layer: &XmlLayer, text: &str) -> Result<()> {
        let Some(span) = &layer.spans.source else {
            return refuse("the layer has no <source>, behind which its backing image would stand");
        };
        let end = span.end;
        let before = lead(self.document.text(), span.start).map_or("", |lead| lead.text);
        let text = self.fitted(layer, text);
        self.splice(end..end, format!("{before}{}", text.trim()));
        Ok(())
    }

    /// Puts an element into a layer's `<source>`, as its last.
    fn add_to_source(&mut self, layer: &XmlLayer, text: &str) -> Result<()> {
        let Some(span) = layer.spans.source.clone() else {
            return refuse("the layer has no <source>, in which its data file would stand");
        };
        let whole = self.document.text();
        let source = whole.get(span.clone()).unwrap_or_default();
        let after = lead(whole, span.start);
        let unit = after.and_then(|lead| self.unit(layer, lead.indent));
        // It stands one level deeper than what `fitted` makes.
        let (after, unit) = after
            .zip(unit)
            .map_or_else(Default::default, |(lead, unit)| (lead.text, unit));
        let before = format!("{after}{unit}");
        let deeper = self
            .fitted(layer, text)
            .trim()
            .replace('\n', &format!("\n{unit}"));
        if let Some(open) = source.strip_suffix("/>") {
            let open_end = span.start + open.trim_end().len();
            self.splice(open_end..span.end, format!(">{before}{deeper}{after}</source>"));
        } else {
            let close = source.rfind("</").map_or(span.end, |at| span.start + at);
            let kept = whole.get(..close).unwrap_or_default().trim_end().len();
            self.splice(kept..kept, format!("{before}{deeper}"));
        }
        Ok(())
    }

    /// The space by which an element stands deeper than the one around it.
    fn unit(&self, layer: &XmlLayer, inner: &str) -> Option<String> {
        let outer = lead(self.document.text(), layer.spans.element.start)?.indent;
        let unit = inner.strip_prefix(outer).filter(|unit| !unit.is_empty());
        Some(unit.unwrap_or("  ").to_owned())
    }

    /// A written element with the indentation and quotes of a layer's `<source>`, beside which it stands.
    fn fitted(&self, layer: &XmlLayer, text: &str) -> String {
        let text = self.quoted(layer, text.to_owned());
        let inner = layer
            .spans
            .source
            .as_ref()
            .and_then(|span| lead(self.document.text(), span.start));
        let lines = text.lines().map(|line| {
            let plain = line.trim_start_matches(' ');
            (line.len().saturating_sub(plain.len()) / 2, plain)
        });
        match inner {
            None => lines.map(|(_, line)| line).collect(),
            Some(Lead {
                line_break, indent, ..
            }) => {
                let unit = self.unit(layer, indent).unwrap_or_else(|| "  ".to_owned());
                let lines: Vec<_> = lines
                    .map(|(depth, line)| format!("{indent}{}{line}", unit.repeat(depth)))
                    .collect();
                lines.join(line_break)
            }
        }
    }

    /// Written attributes in the quotes that the layer's element uses.
    fn quoted(&self, layer: &XmlLayer, text: String) -> String {
        let text_before = |at: usize| self.document.text().as_bytes().get(at.checked_sub(1)?).copied();
        let spans = [&layer.spans.path, &layer.spans.format, &layer.spans.kind];
        let first = spans.into_iter().flatten().next();
        // In what is written here, quotes that are not punctuation are escaped.
        if first.and_then(|span| text_before(span.start)) == Some(b'"') {
            text.replace('\'', "\"")
        } else {
            text
        }
    }
}

fn layer(disk: &Disk, number: usize) -> Result<&XmlLayer> {
    disk.layers.get(number).ok_or_else(|| {
        EditError(format!(
            "the XML gives '{}' {} layers, the active one being 0; there is no layer {number}",
            disk.name(),
            disk.layers.len()
        ))
    })
}

/// A layer that was found, around those below it that are written already.
fn detected(layer: &Layer, below: Option<&str>) -> Result<String> {
    checked(&layer.source, layer.format)?;
    let store = layer.data_file.as_ref().and_then(|file| file.source.as_ref());
    Ok(write::backing_store(
        &layer.source,
        layer.format,
        None,
        store.map(|store| (store, None)),
        below,
    ))
}

/// Whether XML can say it.
fn checked(source: &Source, format: Format) -> Result<()> {
    if !source.fits_libvirt_xml() {
        return refuse(format!("the name '{source}' has bytes that XML cannot hold"));
    }
    match format {
        Format::Luks => refuse(format!(
            "'{source}' is a LUKS container, which XML gives as raw with an <encryption> that names its secret"
        )),
        Format::Iso | Format::Dir | Format::Cow => refuse(format!(
            "libvirt takes no layer of format '{format}', as '{source}' is"
        )),
        Format::Fat if !matches!(source.location, Location::Dir(_)) => refuse(format!(
            "libvirt takes format 'fat' for folders alone, and '{source}' is none"
        )),
        _ => Ok(()),
    }
}

/// A path as an attribute's value.
fn escaped(path: &Path) -> Result<String> {
    let mut value = String::new();
    match path.to_str() {
        Some(text) if escape_xml(text, &mut value) => Ok(value),
        _ => refuse(format!(
            "the name '{}' has bytes that XML cannot hold",
            path.display()
        )),
    }
}

/// What stands before an element that is the first of its line.
#[derive(Clone, Copy, Debug)]
struct Lead<'a> {
    /// Where the line break before it stands.
    start: usize,
    /// The line break and the blanks.
    text: &'a str,
    line_break: &'a str,
    /// The blanks.
    indent: &'a str,
}

fn lead(text: &str, at: usize) -> Option<Lead<'_>> {
    let before = text.get(..at)?;
    let line = before.trim_end_matches([' ', '\t']).len();
    let above = before.get(..line)?.strip_suffix('\n')?;
    let start = above.strip_suffix('\r').unwrap_or(above).len();
    Some(Lead {
        start,
        text: before.get(start..)?,
        line_break: before.get(start..line)?,
        indent: before.get(line..)?,
    })
}
