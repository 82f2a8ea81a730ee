//! The HTTPS client of Rust for `tests/intercept`: `https-get native|built-in URL...`, which trusts the machine's roots, or those that
//! came with it alone. It prints a line of JSON for each URL, `{"status", "text"}` or `{"error"}`.

use std::{error::Error, iter::successors, time::Duration};

use reqwest::{Certificate, Client};
use serde_json::{Value, json};
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    toolweir_test_rmcp::use_ring();
    let mut words = std::env::args().skip(1);
    let mut builder = Client::builder().timeout(Duration::from_secs(10));
    if words.next().as_deref() == Some("built-in") {
        let roots = TLS_SERVER_ROOT_CERTS.iter().map(|root| Certificate::from_der(root)).collect::<Result<Vec<_>, _>>()?;
        builder = builder.tls_certs_only(roots);
    }
    let client = builder.build()?;
    for url in words {
        println!("{}", get(&client, &url).await.unwrap_or_else(|error| json!({"error": with_sources(&error)})));
    }
    Ok(())
}

async fn get(client: &Client, url: &str) -> Result<Value, reqwest::Error> {
    let answer = client.get(url).send().await?;
    let status = answer.status().as_u16();
    Ok(json!({"status": status, "text": answer.text().await?}))
}

fn with_sources(error: &(dyn Error + 'static)) -> String {
    successors(Some(error), |&error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
