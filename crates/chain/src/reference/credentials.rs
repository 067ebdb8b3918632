//! Recorded strings fit to be shown: what lets somebody in is taken out of them.
//!
//! What holds: whatever is not a credential stays as it is, character for character, and every form of reference that
//! is read here is covered. Where a string cannot be read but looks as if it held a credential, nothing of it is shown
//! rather than too much. The result is for eyes only: it must not be recorded or opened.

use super::error::ReferenceError;
use super::json_text::requote;
use super::names::looks_like_file;
use serde::de::IgnoredAny;
use std::borrow::Cow;

/// What stands in the place of a credential.
const STARS: &str = "***";
/// References inside of references that are looked into; QEMU knows hardly any.
const NESTED: usize = 4;
/// Words whose presence in JSON that cannot be read is reason enough to show none of it. With `\u`, any of them may be
/// spelled in digits.
const SUSPICIOUS: [&str; 10] = [
    "passw",
    "passphrase",
    "secret",
    "cookie",
    "keyvalue",
    "key\"",
    "key'",
    ":key=",
    "token",
    "\\u",
];

/// The text without the credentials that a reference may hold: the password of a URI's user (`u:***@h`), the values of
/// `password`, `key`, `cookie` and the like in `json:`, and `key=` of Ceph's colon form. Only the first word of JSON
/// that cannot be read is left, `json:…`, where it may hold some.
///
/// ```
/// use catena::reference::without_credentials;
/// assert_eq!(without_credentials("http://u:pw@h/f"), "http://u:***@h/f");
/// assert_eq!(without_credentials("base.qcow2"), "base.qcow2");
/// ```
pub fn without_credentials(text: &str) -> Cow<'_, str> {
    masked(text, 0).map_or(Cow::Borrowed(text), Cow::Owned)
}

/// An error whose sentence may quote the text, or a part of it.
pub(super) fn error_without_credentials(error: ReferenceError, text: &str) -> ReferenceError {
    let Some(shown) = masked(text, 0) else {
        return error;
    };
    let mut message = error.message().replace(text, &shown);
    if let (Some(json), Some(shown)) = (text.strip_prefix("json:"), shown.strip_prefix("json:")) {
        message = message.replace(json, shown);
    }
    let message = masked_uris(&message).unwrap_or(message);
    ReferenceError::new(error.kind(), message)
}

/// The text with something in it masked; `None` where nothing has to be.
fn masked(text: &str, nested: usize) -> Option<String> {
    match text.strip_prefix("json:") {
        Some(json) => masked_json(json, nested).map(|json| format!("json:{json}")),
        // Inside of JSON, a Ceph image needs no prefix.
        None if looks_like_file(text) => (nested > 0 && !text.starts_with('/'))
            .then(|| masked_keys(text))
            .flatten(),
        None => masked_names(text, nested > 0 || text.contains("rbd:")),
    }
}

/// Masks what a URI or, where it may be one, a Ceph colon form holds.
fn masked_names(text: &str, ceph: bool) -> Option<String> {
    let uris = masked_uris(text);
    let keys = ceph
        .then(|| masked_keys(uris.as_deref().unwrap_or(text)))
        .flatten();
    keys.or(uris)
}

/// Masks the password of every URI in a text.
fn masked_uris(text: &str) -> Option<String> {
    let last_at = text.rfind('@')?;
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    let mut found = false;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        rest = after;
        if text.len().saturating_sub(rest.len()) > last_at {
            break;
        }
        if let Some((user, tail)) = around_password(after) {
            shown.push_str(user);
            shown.push(':');
            shown.push_str(STARS);
            rest = tail;
            found = true;
        }
    }
    shown.push_str(rest);
    found.then_some(shown)
}

/// What stands before and behind the password of a URI, whose part behind the `//` is given.
fn around_password(uri: &str) -> Option<(&str, &str)> {
    let authority = uri.split(['/', '?', '#']).next()?;
    let (userinfo, _) = match authority.rsplit_once('@') {
        Some(split) => split,
        None => {
            // A slash in a password ought to be escaped. Where it is not, half of the password looks like a port.
            let (host, port) = authority.split_once(':')?;
            if host.starts_with('[') || port.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            uri.rsplit_once('@')?
        }
    };
    let (user, password) = userinfo.split_once(':')?;
    let tail = uri.get(userinfo.len()..)?;
    (!password.is_empty()).then_some((user, tail))
}

/// Masks the values of `:key=VALUE` options.
fn masked_keys(text: &str) -> Option<String> {
    const OPTION: &str = ":key=";
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    let mut found = false;
    while let Some((before, after)) = rest.split_once(OPTION) {
        shown.push_str(before);
        shown.push_str(OPTION);
        let end = option_length(after);
        if end > 0 {
            shown.push_str(STARS);
            found = true;
        }
        rest = after.get(end..).unwrap_or_default();
    }
    shown.push_str(rest);
    found.then_some(shown)
}

/// Bytes up to the first colon that no backslash protects.
fn option_length(text: &str) -> usize {
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => return index,
            _ => {}
        }
    }
    text.len()
}

/// Masks values in the text after `json:`. It is walked through as it stands, so that no other character changes and
/// a key that comes twice is masked twice.
fn masked_json(json: &str, nested: usize) -> Option<String> {
    // Readers stop at a NUL.
    let (text, unread) = match json.find('\0').and_then(|at| json.split_at_checked(at)) {
        Some(split) => split,
        None => (json, ""),
    };
    let readable = nested < NESTED && serde_json::from_str::<IgnoredAny>(&requote(text)).is_ok();
    if !readable {
        return is_suspicious(json).then(|| "…".to_owned());
    }
    let hidden = is_suspicious(unread);
    let walked = Walk::over(text, nested);
    if walked.is_none() && !hidden {
        return None;
    }
    let mut shown = walked.unwrap_or_else(|| text.to_owned());
    shown.push_str(if hidden { "…" } else { unread });
    Some(shown)
}

fn is_suspicious(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    SUSPICIOUS.iter().any(|word| lower.contains(word)) || masked_uris(text).is_some()
}

/// A walk over the tokens of JSON that is known to be well formed.
struct Walk {
    shown: String,
    found: bool,
    nested: usize,
    /// How many brackets are open.
    depth: usize,
    /// Whether the value of the last key is a credential.
    secret: bool,
    /// The depth of the object or array that is one as a whole.
    all_secret: Option<usize>,
}

impl Walk {
    /// The text with its credentials masked; `None` where there are none.
    fn over(text: &str, nested: usize) -> Option<String> {
        let mut walk = Self {
            shown: String::with_capacity(text.len()),
            found: false,
            nested,
            depth: 0,
            secret: false,
            all_secret: None,
        };
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let length = match c {
                '"' | '\'' => string_length(rest),
                '-' | '0'..='9' => number_length(rest),
                _ => c.len_utf8(),
            };
            let Some((token, tail)) = rest.split_at_checked(length) else {
                break;
            };
            walk.take(c, token, tail);
            rest = tail;
        }
        walk.found.then_some(walk.shown)
    }

    fn take(&mut self, first: char, token: &str, tail: &str) {
        match first {
            '"' | '\'' if tail.trim_start().starts_with(':') => {
                self.secret = is_secret(&unquoted(token));
                self.shown.push_str(token);
            }
            '"' | '\'' => self.string(token),
            '-' | '0'..='9' if self.is_hidden() => self.hide(),
            _ => {
                match first {
                    '{' | '[' => {
                        self.depth += 1;
                        if self.secret && self.all_secret.is_none() {
                            self.all_secret = Some(self.depth);
                        }
                        self.secret = false;
                    }
                    '}' | ']' => {
                        self.all_secret = self.all_secret.filter(|depth| *depth != self.depth);
                        self.depth = self.depth.saturating_sub(1);
                        self.secret = false;
                    }
                    ',' => self.secret = false,
                    _ => {}
                }
                self.shown.push_str(token);
            }
        }
    }

    fn is_hidden(&self) -> bool {
        self.secret || self.all_secret.is_some()
    }

    fn string(&mut self, token: &str) {
        let value = unquoted(token);
        if self.is_hidden() && !value.is_empty() {
            self.hide();
        } else if let Some(masked) = masked(&value, self.nested + 1) {
            self.found = true;
            self.shown.push_str(&serde_json::Value::from(masked).to_string());
        } else {
            self.shown.push_str(token);
        }
    }

    fn hide(&mut self) {
        self.found = true;
        self.shown.push('"');
        self.shown.push_str(STARS);
        self.shown.push('"');
    }
}

/// Whether a key, dotted or not, is one whose value lets somebody in. What ends in `-secret` only names such a value.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let last = key.rsplit('.').next().unwrap_or_default();
    matches!(last, "key" | "cookie" | "token" | "=keyvalue-pairs")
        || ["password", "passwd", "passphrase"]
            .iter()
            .any(|word| last.ends_with(word))
}

/// Bytes of the string at the start of a text, quotes included.
fn string_length(text: &str) -> usize {
    let mut chars = text.char_indices();
    let open = chars.next().map(|(_, c)| c);
    let mut escaped = false;
    for (index, c) in chars {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if Some(c) == open => return index + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

fn number_length(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '+' | '.'))
        .unwrap_or(text.len())
}

/// What a string in quotes says; the quoted text itself where it says nothing.
fn unquoted(token: &str) -> String {
    serde_json::from_str(&requote(token)).unwrap_or_else(|_| token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Reading, Reference};

    #[test]
    fn passwords_of_uris_are_masked_wherever_a_uri_may_stand() {
        for (text, shown) in [
            ("http://u:pw@h/f", "http://u:***@h/f"),
            ("https://u:p@w@h:8/f?q=a:b@c", "https://u:***@h:8/f?q=a:b@c"),
            ("ftp://:pw@[::1]/f", "ftp://:***@[::1]/f"),
            ("nbd+unix://u:pw@/e?socket=/s", "nbd+unix://u:***@/e?socket=/s"),
            // Not escaped, and so no URI by the rules.
            ("http://u:p/w@h/f", "http://u:***@h/f"),
            ("blkdebug::http://u:pw@h/f", "blkdebug::http://u:***@h/f"),
            (
                r#"json:{"driver":"https","url":"https://u:pw@h/f"}"#,
                r#"json:{"driver":"https","url":"https://u:***@h/f"}"#,
            ),
            (
                r"json:{'file.filename': 'http:\/\/u:pw@h'}",
                r#"json:{'file.filename': "http://u:***@h"}"#,
            ),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }

    #[test]
    fn credentials_in_json_are_masked_in_every_spelling() {
        for (text, shown) in [
            (
                r#"json:{"driver":"iscsi", "user":"u","password":"pw"}"#,
                r#"json:{"driver":"iscsi", "user":"u","password":"***"}"#,
            ),
            (
                r#"json:{"file.password":"pw"}"#,
                r#"json:{"file.password":"***"}"#,
            ),
            (
                r#"json:{"file":{"password":12}}"#,
                r#"json:{"file":{"password":"***"}}"#,
            ),
            (r"json:{'password':'p\'w'}", r#"json:{'password':"***"}"#),
            (
                r#"json:{"pass\u0077ord" : "pw"}"#,
                r#"json:{"pass\u0077ord" : "***"}"#,
            ),
            (
                r#"json:{"password":"a","password":"b"}"#,
                r#"json:{"password":"***","password":"***"}"#,
            ),
            (
                r#"json:{"password":{"a":["b",{"c":1}]},"d":"e"}"#,
                r#"json:{"password":{"a":["***",{"c":"***"}]},"d":"e"}"#,
            ),
            (
                r#"json:{"driver":"rbd","key":"AQ=="}"#,
                r#"json:{"driver":"rbd","key":"***"}"#,
            ),
            (
                r#"json:{"filename":"pool/i:key=AQ==:id=x"}"#,
                r#"json:{"filename":"pool/i:key=***:id=x"}"#,
            ),
            (
                r#"json:{"filename":"json:{\"password\":\"pw\"}"}"#,
                r#"json:{"filename":"json:{\"password\":\"***\"}"}"#,
            ),
            // No reader makes anything of these.
            (r#"json:{"password":"pw""#, "json:…"),
            (r#"json:{"url":"http://u:pw@h""#, "json:…"),
            ("json:{}\0password=pw", "json:{}…"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }

    #[test]
    fn keys_in_cephs_colon_form_are_masked() {
        assert_eq!(
            without_credentials(r"rbd:pool/i@s:id=x:key=A\:Q==:mon_host=h\:1"),
            r"rbd:pool/i@s:id=x:key=***:mon_host=h\:1"
        );
    }

    #[test]
    fn what_holds_no_credentials_stays_as_it_is() {
        for text in [
            "",
            "base.qcow2",
            "/a/http://u:pw@h/f",
            "http://u@h/f",
            "http://h:80/a:b@c",
            "nbd://[::1]:10809/a@b",
            "rbd:pool/i@s:keyfile=/k:keyring=/r",
            r#"json:{ "driver":"iscsi",'password-secret':"sec0", "lun" : 0 }"#,
            r#"json:{"file.filename":"/a/key=1"}"#,
            "json:{",
        ] {
            assert!(matches!(without_credentials(text), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn no_refusal_quotes_a_credential() {
        for text in [
            "http://u:pw pw@h/f",
            "gluster://u:pw@h/f",
            "http://u:p/pw@h/f",
            r#"json:{"driver":"iscsi","password":"pw"}"#,
            r#"json:{"password":"pw"}"#,
            r#"json:{"driver":"http","url":"http://u:pw pw@h/f"}"#,
            r#"json:{"password":"pw""#,
        ] {
            for reading in [Reading::Catena, Reading::Libvirt] {
                let refusal = Reference::parse(text, reading).unwrap_err();
                assert!(!refusal.message().contains("pw"), "{refusal}");
            }
        }
    }
}
