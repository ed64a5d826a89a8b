//! The keys that the cluster's nodes share.

use serde_json::Value;

use super::table::table;

pub(crate) fn keys_text(reply: &Value) -> String {
    table(
        reply.get("keys").unwrap_or(&Value::Null),
        &[("KEY", "id"), ("USED", "used"), ("HEARD S AGO", "heard_s")],
    )
}
