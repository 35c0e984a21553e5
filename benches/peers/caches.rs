//! Other people's caches, as their makers would set them up for this: from memory or the page cache, one core, no
//! access log.

use anyhow::Result;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

/// A cache that one can install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    Varnish,
    Nginx,
}

/// What Varnish would write to its log in shared memory of each request.
const UNTOLD: &str = "-Begin,-End,-Link,-SessOpen,-SessClose,-VCL_call,-VCL_return,-VCL_use,-ReqStart,-ReqMethod,-ReqURL,\
                      -ReqProtocol,-ReqHeader,-ReqUnset,-ReqAcct,-RespProtocol,-RespStatus,-RespReason,-RespHeader,\
                      -RespUnset,-Hit,-Timestamp,-Length";

// === impl Product ===

impl Product {
    pub(crate) const ALL: [Self; 2] = [Self::Varnish, Self::Nginx];

    /// In the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Varnish => "Varnish",
            Self::Nginx => "nginx",
        }
    }

    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Varnish => "varnishd",
            Self::Nginx => "nginx",
        }
    }

    /// How much of its CPU a hit of ours may cost.
    pub(crate) fn limit(self) -> Option<f64> {
        match self {
            Self::Varnish => Some(1.0),
            Self::Nginx => None,
        }
    }

    /// What its `Cache-Status` says on a hit.
    pub(crate) fn hit(self) -> &'static str {
        match self {
            Self::Varnish => "hit",
            Self::Nginx => "HIT",
        }
    }

    pub(crate) fn is_installed(self) -> bool {
        let asked = Command::new(self.program())
            .arg("-V")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        asked.is_ok_and(|status| status.success())
    }

    /// Runs it in the foreground, with all that it writes in `folder`.
    pub(crate) fn command(self, folder: &Path, listen: SocketAddr, upstream: SocketAddr) -> Result<Command> {
        let mut command = Command::new(self.program());
        match self {
            Self::Varnish => {
                let config = folder.join("bench.vcl");
                // Requests with `Authorization` are passed on by its defaults.
                let text = format!(
                    "vcl 4.1;\n\
                     backend default {{ .host = \"{}\"; .port = \"{}\"; }}\n\
                     sub vcl_recv {{ return (hash); }}\n\
                     sub vcl_deliver {{\n\
                         if (obj.hits > 0) {{ set resp.http.Cache-Status = \"varnish; hit\"; }}\n\
                         else {{ set resp.http.Cache-Status = \"varnish; fwd=miss\"; }}\n\
                         return (deliver);\n\
                     }}\n",
                    upstream.ip(),
                    upstream.port()
                );
                std::fs::write(&config, text)?;
                command
                    .args(["-F", "-j", "none", "-s", "default=malloc,64m", "-p", "thread_pools=1", "-p"])
                    .arg(format!("vsl_mask={UNTOLD}"))
                    .arg("-n")
                    .arg(folder.join("work"))
                    .args(["-a", &listen.to_string(), "-f"])
                    .arg(config)
                    .stderr(Stdio::null());
            }
            Self::Nginx => {
                let config = folder.join("nginx.conf");
                let dir = folder.display();
                let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|name| format!("{name}_temp_path {dir}/{name};\n"))
                    .concat();
                let text = format!(
                    "daemon off; master_process off; worker_processes 1; pid {dir}/pid;\n\
                     error_log stderr error;\n\
                     events {{ worker_connections 256; }}\n\
                     http {{\n\
                     access_log off; sendfile on; tcp_nodelay on; keepalive_requests 100000000;\n\
                     open_file_cache max=100;\n\
                     {temp}\
                     proxy_cache_path {dir}/cache keys_zone=bench:8m max_size=64m use_temp_path=off;\n\
                     server {{ listen {listen};\n\
                     location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_cache bench;\n\
                     proxy_set_header Connection \"\";\n\
                     add_header Cache-Status \"nginx; $upstream_cache_status\"; }} }} }}\n"
                );
                std::fs::write(&config, text)?;
                command.arg("-e").arg("stderr").arg("-p").arg(folder).arg("-c").arg(config);
            }
        }
        command.stdout(Stdio::null());
        Ok(command)
    }
}
