"""The look of the status page, and the policy that lets a browser load nothing and run nothing."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #55606b; --paper: #fff; --box: #f4f6f8; --line: #d5dbe1;
  --link: #0b57a4; --bad: #a81414; --bad-box: #fdeceb; --warn: #7a4100; --warn-box: #fff3df; --good: #1a6b34;
  --ready: #9aa5b1; --keys: #56b4e9; --shares: #0072b2; --masked: #e69f00; --sum: #009e73; --answers: #cc79a7;
  --results: #8c4b9e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaee; --soft: #a3aeb9; --paper: #121416; --box: #1c2126; --line: #363e46; --link: #84bdf5;
    --bad: #ff9d96; --bad-box: #3a1917; --warn: #ffc27d; --warn-box: #33240f; --good: #7fd699; --ready: #6b7681;
    --shares: #3d93cf; --results: #b07cc0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 3rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; }
a { color: var(--link); }
header { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; align-items: baseline; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.15rem; margin: 0; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
header p, section > p { margin: .2rem 0; } .soft { color: var(--soft); }
.late { color: var(--warn); font-weight: 600; }
code { font: .92em ui-monospace, monospace; overflow-wrap: anywhere; }
section { margin-top: 2rem; padding-top: 1rem; border-top: 2px solid var(--line); }
.notices { list-style: none; margin: 1rem 0 0; padding: 0; }
.notices li { margin: .4rem 0; padding: .5rem .8rem; border-left: 4px solid var(--line); background: var(--box);
  overflow-wrap: anywhere; }
.notices .bad { border-color: var(--bad); background: var(--bad-box); }
.notices .warn { border-color: var(--warn); background: var(--warn-box); }
.bad strong { color: var(--bad); } .warn strong { color: var(--warn); } .good { color: var(--good); font-weight: 600; }
.notices span { display: block; color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 1.3rem 0 .3rem; }
th, td { padding: .32rem .7rem .32rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; } .number { text-align: right; }
td.text { white-space: normal; overflow-wrap: break-word; min-width: 5.5rem; max-width: 16rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .8rem 0 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.round { margin-top: 1rem; padding: .8rem 1rem; background: var(--box); border-radius: .4rem; }
.round dl { margin-top: .5rem; }
svg.bar { display: block; width: 100%; min-width: 6rem; height: .85rem; margin-top: .2rem; }
.store { fill: var(--shares); } .full { fill: var(--bad); } .rest { fill: var(--line); }
svg.store-bar { min-width: 3.5rem; max-width: 9rem; height: .35rem; }
.ready { fill: var(--ready); } .keys { fill: var(--keys); } .shares { fill: var(--shares); }
.masked { fill: var(--masked); }
.sum { fill: var(--sum); } .answers { fill: var(--answers); } .results { fill: var(--results); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .5rem 0 0; padding: 0; list-style: none;
  font-size: .9rem; } .legend svg { width: .8rem; height: .8rem; vertical-align: -.05rem; margin-right: .35rem; }
@media (max-width: 40rem) {
  .spare { display: none; } dl { grid-template-columns: minmax(5rem, 34%) 1fr; column-gap: .8rem; }
  th, td { padding-right: .5rem; } svg.bar { min-width: 4.5rem; }
}
"""
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
