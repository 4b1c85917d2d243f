"""How the page looks, in light and dark. One constant: the page must be whole without a network or a second file."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;
--bg:#faf9f7;--card:#fff;--ink:#1c1e22;--soft:#646b75;--hair:#e5e2dc;
--a:#2563c9;--b:#0f8a6d;--c:#8a5cc2;--d:#c2570c;
--training:#5aa98b;--evaluating:#88b8dd;--saving:#4d7fc4;--starting:#b9c6d6;--cooled:#f0c987;--cooling:#e09a3c;
--recovering:#c98a2b;--paused:#b9b2a6;--ending:#cfd3d8;--asleep:#8e8a9c;--off:#3c3f46;
--memory:#2563c9;--heat:#c2570c;--disk:#7a6a1d;--death:#c53030;--machine:#30343b;--user:#6b6459;--other:#5f6b7a;
--good:#13795b;--bad:#c53030;--warn:#a05a00}
@media (prefers-color-scheme:dark){:root{
--bg:#15171a;--card:#1d2024;--ink:#e8e6e1;--soft:#9aa1ab;--hair:#31353b;
--a:#76a9fa;--b:#4fc3a1;--c:#b79bec;--d:#f2a25c;
--training:#3f8a70;--evaluating:#5b87ad;--saving:#4a78c0;--starting:#4b5664;--cooled:#8f7440;--cooling:#b97a2b;
--recovering:#a8741f;--paused:#5d5850;--ending:#444a52;--asleep:#55516a;--off:#6a707a;
--memory:#5b8def;--heat:#e08a3c;--disk:#b9a545;--death:#e5605a;--machine:#aeb4bd;--user:#8d867a;--other:#8793a3;
--good:#4fc3a1;--bad:#f07f78;--warn:#f2b45c}}
*{box-sizing:border-box}
body{margin:0;overflow-wrap:anywhere;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK SC","PingFang SC",sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:30px;line-height:1.2;margin:0 0 4px;letter-spacing:-.02em}
h2{font-size:17px;margin:36px 0 10px;letter-spacing:-.01em}
p{margin:6px 0}
.over{color:var(--soft);font-size:14px;margin-bottom:2px}
.lead{font-size:17px;max-width:62em}
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}
.attention{border-left:3px solid var(--warn);padding:2px 0 2px 12px;margin:14px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:10px;margin:22px 0 8px}
.tile{background:var(--card);border:1px solid var(--hair);border-radius:10px;padding:10px 14px}
.tile b{display:block;font-size:21px;font-weight:620;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
.card{background:var(--card);border:1px solid var(--hair);border-radius:10px;padding:12px 14px;margin:10px 0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:10px}
.cards .card{margin:0}
h3{font-size:15px;margin:0 0 2px}
.card p{margin:2px 0}
pre{margin:6px 0;white-space:pre-wrap;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(4em,max-content) minmax(0,1fr);gap:4px 14px;margin:6px 0 0;font-size:14px}
dt{color:var(--soft);max-width:15em;overflow-wrap:anywhere}dd{margin:0;overflow-wrap:anywhere}
abbr{text-decoration:underline dotted;text-underline-offset:3px;cursor:help}
figure{margin:0}
figcaption{font-size:12.5px;color:var(--soft);display:flex;flex-wrap:wrap;gap:2px 16px;margin-bottom:2px}
figcaption b{color:var(--ink)}
.key{display:inline-block;width:17px;border-top:2px solid;vertical-align:4px;margin-right:5px}
.key.a{border-color:var(--a)}.key.b{border-color:var(--b)}.key.c{border-color:var(--c)}.key.d{border-color:var(--d)}
.key.limit{border-top-style:dashed}.key.faint{opacity:.4}
.key-dot{display:inline-block;width:8px;height:8px;border-radius:4px;background:var(--d);margin-right:5px}
.on-phone{display:none!important}
.next code{font-size:14px}
svg.plot{display:block;width:100%;height:auto;margin:2px 0 8px}
svg text{font-family:inherit;fill:var(--soft)}
svg .tick{font-size:10.5px;font-variant-numeric:tabular-nums}
svg .grid{stroke:var(--hair);stroke-width:1}
svg .line{fill:none;stroke-width:1.7;stroke-linejoin:round;stroke-linecap:round}
svg .line.faint{stroke-width:1;opacity:.35}
svg .dot{fill:var(--d)}
svg .line.limit{stroke-width:1.2;stroke-dasharray:5 4;opacity:.85}
svg .a{stroke:var(--a)}svg .b{stroke:var(--b)}svg .c{stroke:var(--c)}svg .d{stroke:var(--d)}
svg .area{stroke:none;opacity:.13}
svg .area.a{fill:var(--a)}svg .area.b{fill:var(--b)}svg .area.c{fill:var(--c)}svg .area.d{fill:var(--d)}
svg .save{fill:var(--saving)}
svg .mark{stroke-width:1;stroke-opacity:.55;stroke-dasharray:2 2}
svg .pin-text{fill:#fff;font-size:10px;font-weight:600}
svg .band{opacity:.2}
svg.strip rect{shape-rendering:crispEdges}
svg.bar{display:block;width:100%;height:26px;border-radius:6px;margin:4px 0 10px}
.swatch{width:11px;height:11px;border-radius:3px;margin-right:7px;vertical-align:-1px}
.s-training,.s-running{fill:var(--training)}.s-evaluating{fill:var(--evaluating)}.s-saving{fill:var(--saving)}
.s-starting{fill:var(--starting)}.s-cooled{fill:var(--cooled)}.s-cooling{fill:var(--cooling)}
.s-recovering{fill:var(--recovering)}.s-paused{fill:var(--paused)}.s-ending{fill:var(--ending)}
.s-asleep{fill:var(--asleep)}.s-waiting{fill:var(--paused);fill-opacity:.6}.s-off{fill:var(--off)}.s-stopped{fill:var(--ending)}.s-unguarded{fill:var(--off);fill-opacity:.6}
.k-memory{fill:var(--memory);stroke:var(--memory)}.k-heat{fill:var(--heat);stroke:var(--heat)}
.k-disk{fill:var(--disk);stroke:var(--disk)}.k-death{fill:var(--death);stroke:var(--death)}
.k-machine{fill:var(--machine);stroke:var(--machine)}.k-user{fill:var(--user);stroke:var(--user)}
.k-other{fill:var(--other);stroke:var(--other)}
.pin{stroke:none}
table{border-collapse:collapse;width:100%;font-size:14px}
th{font-weight:600;color:var(--soft);text-align:left;font-size:12.5px}
th,td{padding:6px 12px 6px 0;border-bottom:1px solid var(--hair);vertical-align:top;overflow-wrap:normal}
tr:last-child td{border-bottom:0}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;overflow-wrap:normal}
.card:target{border-color:var(--a);box-shadow:0 0 0 2px var(--a)}
.badge{display:inline-block;min-width:21px;padding:0 6px;border-radius:11px;color:#fff;font-size:12px;font-weight:600;
text-align:center;line-height:20px;margin-right:8px}
.b-memory{background:var(--memory)}.b-heat{background:var(--heat)}.b-disk{background:var(--disk)}.b-death{background:var(--death)}
.b-machine{background:var(--machine)}.b-user{background:var(--user)}.b-other{background:var(--other)}
@media (max-width:700px){main{padding:18px 12px 40px}h1{font-size:25px}.lead{font-size:16px}
.on-desk{display:none!important}.on-phone{display:block!important}dl{gap:2px 10px}
.tiles{grid-template-columns:repeat(auto-fit,minmax(118px,1fr))}}
@media (prefers-color-scheme:dark){
.badge,svg .pin-text{color:#101214;fill:#101214}}
.soft{color:var(--soft)}
details{margin:8px 0}summary{cursor:pointer;color:var(--soft)}
code{overflow-wrap:anywhere}
code,pre{font:12.5px/1.5 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
footer{margin-top:40px;color:var(--soft);font-size:13px}
@media print{body{background:#fff}.card,.tile{break-inside:avoid}}
"""
