//! From bytes to the fields of a request. Apart from the rules because of a trap in JSON itself: RFC 8259 leaves open what an
//! object means that has a key twice, and `serde_json` silently keeps the last value, so that `{"dest": "1", "dest": "2"}`
//! would dial 2. Here a repeated key is an error.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{FieldError, Refusal, fields, rules};

/// The fields of a request, before they are judged.
pub(super) struct Decoded {
    /// Those that are given: neither `null` nor an empty `text` or `wav`, which count as absent.
    pub(super) fields: Map<String, Value>,
    /// An error for each key that is repeated, at any depth.
    pub(super) repeated: Vec<FieldError>,
}

/// Reads a JSON object. A byte order mark is skipped, as RFC 8259 (section 8.1) allows.
///
/// # Errors
/// [`Refusal::Malformed`] for what is not JSON, [`Refusal::Invalid`] for JSON that is not an object.
pub(super) fn decode(body: &[u8]) -> Result<Decoded, Refusal> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let mut repeated = Vec::new();
    // serde_json's syntax errors name the position and what was expected there, never the text itself.
    let malformed = |error: serde_json::Error| Refusal::Malformed(error.to_string());
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = Reader { field: None, repeated: &mut repeated }.deserialize(&mut json).map_err(malformed)?;
    json.end().map_err(malformed)?;
    match value {
        Value::Object(mut fields) => {
            fields.retain(|name, value| is_given(name, value));
            Ok(Decoded { fields, repeated })
        }
        other => {
            let message = format!("is {}; pass a JSON object with the fields of a call", rules::article(&other));
            Err(Refusal::Invalid { id: None, errors: vec![FieldError::new("", message)] })
        }
    }
}

/// Unknown fields are kept, whatever they hold, so that they are reported.
fn is_given(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => fields::rule(name).is_none(),
        Value::String(text) => !(text.is_empty() && matches!(name, "text" | "wav")),
        _ => true,
    }
}

/// Reads what [`Value`] reads, and notes the keys that an object repeats.
struct Reader<'a> {
    /// The field of the request that is being read; `None` for the request itself.
    field: Option<&'a str>,
    repeated: &'a mut Vec<FieldError>,
}

impl Reader<'_> {
    fn note(&mut self, key: &str) {
        let error = match self.field {
            None => FieldError::new(&rules::shorten(key), "is given more than once; give each field once"),
            Some(field) => {
                let key = rules::shown(&Value::from(key));
                FieldError::new(
                    &rules::shorten(field),
                    format!("key {key}: is given more than once; give each key once"),
                )
            }
        };
        self.repeated.push(error);
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Reader { field: self.field, repeated: self.repeated })? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let inner = Reader { field: self.field.or(Some(&key)), repeated: self.repeated };
            let value = entries.next_value_seed(inner)?;
            if object.contains_key(&key) {
                self.note(&key);
            }
            object.insert(key, value);
        }
        Ok(object.into())
    }
}
