//! A YAML document with the place of everything in it, so that every error of a file can say where it is.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

/// A value, and where it is written.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// From 1.
    pub(super) line: u64,
    pub(super) value: Content,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    /// In the order of the file; the parser refuses a key that is given twice.
    Object(Vec<(String, Node)>),
    List(Vec<Node>),
    /// Null, a boolean, a number or a string.
    Scalar(Value),
}

/// Reads a document; an empty one is null.
///
/// # Errors
/// Not YAML, with the place.
pub(super) fn read(text: &str) -> Result<Node, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let read: Result<Spanned<Content>, _> = serde_saphyr::from_str_with_options(text, options);
    read.map(Node::from).map_err(|error| error.to_string())
}

impl Node {
    /// Without the places.
    pub(super) fn to_value(&self) -> Value {
        match &self.value {
            Content::Object(entries) => {
                let entries = entries.iter().map(|(key, node)| (key.clone(), node.to_value()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
            Content::List(items) => items.iter().map(Node::to_value).collect(),
            Content::Scalar(value) => value.clone(),
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.value, Content::Scalar(Value::Null))
    }
}

impl From<Spanned<Content>> for Node {
    fn from(spanned: Spanned<Content>) -> Self {
        Self { line: spanned.referenced.line(), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Content>>()? {
            list.push(item.into());
        }
        Ok(Content::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Content, A::Error> {
        let mut object = Vec::new();
        while let Some((key, value)) = entries.next_entry::<String, Spanned<Content>>()? {
            object.push((key, value.into()));
        }
        Ok(Content::Object(object))
    }
}
