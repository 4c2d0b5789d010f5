//! The documents that other programs read: JSON Schemas of what comes in and goes out, AsyncAPI for the subjects, OpenAPI
//! for the HTTP API. Made from the types and the field table, so that they say what the program does; committed under
//! `schemas/`, where a test fails on drift.

mod asyncapi;
mod openapi;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::call::{CallRequest, StatusEvent};
use crate::config::trunks::TrunksFile;
use crate::policy::Alert;

/// Every document by its file name. The same at every call: keys are sorted.
pub fn all() -> Vec<(&'static str, Value)> {
    let documents = [
        ("alert.schema.json", named("alert", sent::<Alert>("Alert"))),
        ("asyncapi.json", asyncapi::document()),
        ("call-request.schema.json", named("call-request", received::<CallRequest>("Call request"))),
        ("openapi.json", openapi::document()),
        ("status-event.schema.json", named("status-event", sent::<StatusEvent>("Status event"))),
        ("trunks.schema.json", named("trunks", received::<TrunksFile>("Trunks"))),
    ];
    documents.map(|(name, document)| (name, sorted(document))).into()
}

/// What a type may look like on its way in.
fn received<T: JsonSchema>(title: &str) -> Value {
    schema::<T>(SchemaSettings::draft2020_12().for_deserialize(), title)
}

/// What a type looks like on its way out.
fn sent<T: JsonSchema>(title: &str) -> Value {
    schema::<T>(SchemaSettings::draft2020_12().for_serialize(), title)
}

/// Self-contained, without references: so it can stand in another document as it is, and means the same to a tool of an older
/// draft. Without `$schema` and `$id`, which belong to a document of its own.
fn schema<T: JsonSchema>(settings: SchemaSettings, title: &str) -> Value {
    let inline = settings.with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = inline.into_generator().into_root_schema_for::<T>().to_value();
    schema["title"] = json!(title);
    unwrap_descriptions(&mut schema);
    schema
}

/// Where a comment's line ends means nothing; an empty line parts paragraphs.
fn unwrap_descriptions(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                let paragraphs: Vec<_> = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
                *text = paragraphs.join("\n\n");
            }
            fields.values_mut().for_each(unwrap_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(unwrap_descriptions),
        _ => {}
    }
}

/// As a document of its own. The id is a name, not a place: nothing has to be fetched.
fn named(name: &str, mut schema: Value) -> Value {
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["$id"] = json!(format!("urn:sipstuff:schema:{name}"));
    schema
}

/// Whatever order the JSON library keeps.
fn sorted(mut document: Value) -> Value {
    document.sort_all_objects();
    document
}

/// What both API descriptions say of the program.
fn info(title: &str, description: &str) -> Value {
    json!({
        "title": title,
        "version": env!("CARGO_PKG_VERSION"),
        "description": description,
        "license": {"name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE")},
    })
}
