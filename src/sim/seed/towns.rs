//! Pure. The towns of the world, their ports and doors.

use serde_json::{Value, json};

/// A town with its ports.
#[derive(Debug, Clone, Copy)]
pub(in crate::sim) struct Town {
    pub(in crate::sim) city: &'static str,
    pub(in crate::sim) state: Option<&'static str>,
    pub(in crate::sim) country: &'static str,
    pub(in crate::sim) code: &'static str,
    pub(in crate::sim) zip: &'static str,
    pub(in crate::sim) unlocode: &'static str,
    pub(in crate::sim) timezone: &'static str,
    pub(in crate::sim) offset: i8,
    pub(in crate::sim) port_code: &'static str,
    /// IATA and ICAO; a town has either a seaport or an airport.
    pub(in crate::sim) air: Option<(&'static str, &'static str)>,
}

type Row = (
    &'static str,
    Option<&'static str>,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    i8,
    &'static str,
    Option<(&'static str, &'static str)>,
);

pub(in crate::sim) const CHINA: &str = "China";
pub(in crate::sim) const USA: &str = "United States of America";

/// Origins first (the first ten), then destinations.
pub(in crate::sim) const TOWNS: [Row; 20] = [
    ("Shenzhen", Some("Guangdong"), CHINA, "CN", "518083", "CNYTN", "Asia/Shanghai", 8, "57078", None),
    ("Ningbo", Some("Zhejiang"), CHINA, "CN", "315800", "CNNGB", "Asia/Shanghai", 8, "57020", None),
    ("Shanghai", Some("Shanghai"), CHINA, "CN", "200000", "CNSHA", "Asia/Shanghai", 8, "57035", None),
    ("Qingdao", Some("Shandong"), CHINA, "CN", "266000", "CNTAO", "Asia/Shanghai", 8, "57047", None),
    ("Ho Chi Minh City", None, "Vietnam", "VN", "700000", "VNSGN", "Asia/Ho_Chi_Minh", 7, "55206", None),
    ("Nhava Sheva", Some("Maharashtra"), "India", "IN", "400707", "INNSA", "Asia/Kolkata", 5, "53313", None),
    ("Laem Chabang", None, "Thailand", "TH", "20230", "THLCH", "Asia/Bangkok", 7, "54934", None),
    (
        "Hong Kong",
        None,
        "Hong Kong",
        "HK",
        "999077",
        "HKHKG",
        "Asia/Hong_Kong",
        8,
        "58201",
        Some(("HKG", "VHHH")),
    ),
    ("Seoul", None, "South Korea", "KR", "22382", "KRICN", "Asia/Seoul", 9, "58023", Some(("ICN", "RKSI"))),
    (
        "Shanghai",
        Some("Shanghai"),
        CHINA,
        "CN",
        "201202",
        "CNPVG",
        "Asia/Shanghai",
        8,
        "57036",
        Some(("PVG", "ZSPD")),
    ),
    ("Oakland", Some("CA"), USA, "US", "94607", "USOAK", "America/Los_Angeles", -8, "2811", None),
    ("Los Angeles", Some("CA"), USA, "US", "90731", "USLAX", "America/Los_Angeles", -8, "2704", None),
    ("Long Beach", Some("CA"), USA, "US", "90802", "USLGB", "America/Los_Angeles", -8, "2709", None),
    ("Savannah", Some("GA"), USA, "US", "31408", "USSAV", "America/New_York", -5, "1703", None),
    ("New York", Some("NY"), USA, "US", "10303", "USNYC", "America/New_York", -5, "1001", None),
    ("Rotterdam", None, "Netherlands", "NL", "3199", "NLRTM", "Europe/Amsterdam", 1, "42157", None),
    ("Hamburg", None, "Germany", "DE", "21129", "DEHAM", "Europe/Berlin", 1, "42879", None),
    (
        "Chicago",
        Some("IL"),
        USA,
        "US",
        "60666",
        "USORD",
        "America/Chicago",
        -6,
        "3901",
        Some(("ORD", "KORD")),
    ),
    (
        "Anchorage",
        Some("AK"),
        USA,
        "US",
        "99502",
        "USANC",
        "America/Anchorage",
        -9,
        "3126",
        Some(("ANC", "PANC")),
    ),
    (
        "Frankfurt",
        None,
        "Germany",
        "DE",
        "60547",
        "DEFRA",
        "Europe/Berlin",
        1,
        "42877",
        Some(("FRA", "EDDF")),
    ),
];
/// Where the origins end in [`TOWNS`], and where each half's airports begin.
pub(in crate::sim) const ORIGINS: usize = 10;
pub(in crate::sim) const ORIGIN_AIRPORTS: usize = 7;
pub(in crate::sim) const DESTINATION_AIRPORTS: usize = 17;

// === impl Town ===

impl Town {
    pub(in crate::sim) fn at(index: usize) -> Self {
        let (city, state, country, code, zip, unlocode, timezone, offset, port_code, air) = TOWNS[index];
        Self { city, state, country, code, zip, unlocode, timezone, offset, port_code, air }
    }

    pub(in crate::sim) fn address(&self, street: Option<&str>, reference: Option<&str>) -> Value {
        json!({
            "_object": "/address",
            "street_address": street,
            "street_address2": null,
            "city": self.city,
            "state": self.state,
            "country": self.country,
            "country_code": self.code,
            "zip": self.zip,
            "unlocode": self.unlocode,
            "timezone": self.timezone,
            "ref": reference,
        })
    }

    /// The town as a port.
    pub(in crate::sim) fn port(&self) -> Value {
        let trucking = json!({"_object": "/trucking/port", "port_code": self.port_code});
        let (name, first) = match self.air {
            Some((iata, icao)) => (
                format!("{iata} - {}", self.city),
                json!({
                    "_object": "/air/port",
                    "port_code": self.port_code,
                    "iata_code": iata,
                    "icao_code": icao,
                }),
            ),
            None => (
                format!("{}, {}", self.city, self.state.unwrap_or(self.code)),
                json!({"_object": "/ocean/port", "port_code": self.port_code}),
            ),
        };
        json!({
            "_object": "/place",
            "name": name,
            "address": self.address(None, None),
            "details": [first, trucking],
        })
    }

    /// A door in the town.
    pub(in crate::sim) fn door(&self, street: &str) -> Value {
        json!({
            "_object": "/place",
            "name": format!("{street}, {}", self.city),
            "address": self.address(Some(street), None),
            "details": [],
        })
    }
}

/// A port of which nothing is known but a code.
pub(in crate::sim) fn unknown_port(code: &str) -> Value {
    json!({
        "_object": "/place",
        "name": code,
        "address": {
            "_object": "/address",
            "street_address": null,
            "street_address2": null,
            "city": code,
            "state": null,
            "country": "",
            "country_code": code.get(..2).unwrap_or_default(),
            "zip": null,
            "unlocode": code,
            "timezone": "Etc/UTC",
            "ref": null,
        },
        "details": [],
    })
}
