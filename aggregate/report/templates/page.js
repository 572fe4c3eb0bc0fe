"use strict";
// Views of the page. Everything it shows is in the tables beside it; without this script the page has its
// tables and static figures.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  // Cells come column by column; text as codes into its names.
  data.cells = ((table) => {
    const cells = Array.from({ length: table.rows }, () => ({ parts: {} }));
    for (const [name, column] of Object.entries(table.columns)) {
      const value = Array.isArray(column) ? (n) => column[n] : (n) => column.names[column.codes[n]];
      const part = name.startsWith("bytes_total_") ? name.slice("bytes_total_".length) : "";
      cells.forEach((cell, n) => {
        const found = value(n);
        if (part) { if (found !== null) cell.parts[part] = found; } else if (found !== null || name === "seed") cell[name] = found;
      });
    }
    return cells;
  })(data.cells);
  const byId = (id) => document.getElementById(id);
  // Plotly reads some markup in labels: a name stays a name.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const MIB = 2 ** 20;
  const percent = (x) => `${+(100 * x).toPrecision(4)} %`;
  const figure = (x, digits = 4) =>
    x === null || x === undefined ? "" : Math.abs(x) >= 10 ** digits ? Math.round(x).toLocaleString("en-US") : String(+x.toPrecision(digits));

  // --- state, kept in the address ---------------------------------------------------------------------------------
  const FILTERS = ["model", "method", "pattern", "variant"];
  const defaults = { model: "0", method: "", pattern: "", variant: "", heat: "", by: "margin", what: "zeros", layer: "", cost: "bytes", loss: "perplexity", off: "", s: "", q: "", sort: "", desc: "", page: "0", theme: "" };
  const state = { ...defaults };
  const read = () => {
    const hash = location.hash.startsWith("#/?") ? location.hash.slice(3) : "";
    const found = new URLSearchParams(hash);
    for (const key of Object.keys(defaults)) state[key] = found.get(key) ?? defaults[key];
    if (state.model !== "" && !data.models[+state.model]) state.model = "0";
  };
  const write = () => {
    const changed = Object.entries(state).filter(([key, value]) => value !== defaults[key]);
    const text = new URLSearchParams(changed).toString();
    history.replaceState(null, "", text ? `#/?${text}` : "#/");
  };
  const set = (changes) => { Object.assign(state, changes); write(); draw(); };

  // --- theme ------------------------------------------------------------------------------------------------------
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (state.theme ? state.theme === "dark" : system.matches);
  const colour = (variant) => {
    const found = (data.looks[variant] || { colour: "#888888" }).colour;
    return found === "#000000" && dark() ? "#e6e9ed" : found;
  };
  const SYMBOLS = { o: "circle", s: "square", "^": "triangle-up", D: "diamond", v: "triangle-down", P: "cross", X: "x", "*": "star", "<": "triangle-left", ">": "triangle-right" };
  const symbol = (variant) => SYMBOLS[(data.looks[variant] || {}).marker] || "circle";
  // 20, 50, 100 instead of powers of ten, which few readers compare at sight; the fewer, the more decades there are.
  const logAxis = (values) => {
    const known = values.filter((x) => x > 0), [low, high] = [Math.min(...known), Math.max(...known)];
    // Within half a decade a logarithmic axis is nearly linear, and round steps read best.
    if (!(high > 3 * low)) return {};
    const decades = Math.log10(high / low), steps = decades < 1.5 ? [1, 1.5, 2, 3, 5, 7] : decades < 3.5 ? [1, 2, 5] : [1];
    const ticks = [];
    for (let k = Math.floor(Math.log10(low)) - 1; k <= Math.ceil(Math.log10(high)); k += 1) ticks.push(...steps.map((n) => +(n * 10 ** k).toPrecision(3)));
    return { type: "log", tickmode: "array", tickvals: ticks, ticktext: ticks.map((x) => x.toLocaleString("en-US", { maximumSignificantDigits: 3 })) };
  };
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  // Okabe and Ito's palette without yellow, and three that stand apart from it on light and dark ground.
  const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888", "#9467BD", "#8C564B", "#7F9F1F"];

  // --- what is chosen ---------------------------------------------------------------------------------------------
  const fits = (cell) =>
    (state.model === "" || cell.m === +state.model) &&
    (cell.method === "none" || ((!state.method || cell.method === state.method) && (!state.pattern || cell.pattern === state.pattern))) &&
    (!state.variant || cell.variant === state.variant || (cell.method === "none" && cell.variant === "dense"));
  const chosen = () => data.cells.filter(fits);
  const untrained = (cells) => cells.some((cell) => data.models[cell.m] && !data.models[cell.m].trained);
  const methodName = (cell) => [cell.method, cell.pattern, cell.extra].filter(Boolean).join(", ");
  // Up to a handful of ways of pruning, colour tells the format and dashes the way; among more, colour tells the method.
  const painter = (cells) => {
    const pruned = cells.filter((cell) => cell.method !== "none");
    const ways = [...new Set(pruned.map(methodName))], formats = new Set(pruned.map((cell) => cell.variant));
    if (ways.length <= DASHES.length && (formats.size > 1 || ways.length < 2)) {
      return (cell) => ({ colour: colour(cell.variant), dash: DASHES[ways.indexOf(methodName(cell)) % DASHES.length], symbol: symbol(cell.variant) });
    }
    const methods = [...new Set(data.cells.filter((cell) => cell.method !== "none").map((cell) => cell.method))];
    const shapes = Object.values(SYMBOLS);
    return (cell) => {
      const n = methods.indexOf(cell.method), own = ways.filter((way) => way === cell.method || way.startsWith(`${cell.method}, `));
      const number = own.indexOf(methodName(cell));
      return { lone: number % 2 ? "-open" : "", colour: PALETTE[n % PALETTE.length], dash: DASHES[number % DASHES.length], symbol: formats.size > 1 ? symbol(cell.variant) : shapes[n % shapes.length] };
    };
  };
  const modelName = (cell) => (state.model === "" ? `${data.models[cell.m].model} ${data.models[cell.m].dtype}, ` : "");

  const layout = (title, x, y, cells, more = {}) => {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
    const mark = untrained(cells) ? [{ text: "untrained: random weights", xref: "paper", yref: "paper", x: 1, y: 1, yanchor: "bottom", yshift: 3, showarrow: false, font: { color: "#ffffff" }, bgcolor: "#a63d00", borderpad: 3 }] : [];
    const { annotations = [], xaxis = {}, yaxis = {}, ...rest } = more;
    return {
      title: { text: title, x: 0, xref: "container", y: 1, yanchor: "top", pad: { l: 6, t: 12 }, font: { size: 15 } },
      font: { color: ink, family: "system-ui, sans-serif", size: 13 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 70, r: 20, t: 60, b: 55 }, hovermode: "closest",
      showlegend: false,
      xaxis: { title: { text: x, standoff: 8 }, gridcolor: line, zerolinecolor: line, automargin: true, ...xaxis },
      yaxis: { title: { text: y }, gridcolor: line, zerolinecolor: line, automargin: true, ...yaxis },
      annotations: [...mark, ...annotations], ...rest,
    };
  };
  // Legends are lists beside the plots, as long as they need to be: they cover nothing and work by keyboard.
  const GLYPHS = { circle: "\u25CF", square: "\u25A0", "triangle-up": "\u25B2", diamond: "\u25C6", "triangle-down": "\u25BC", cross: "\u271A", x: "\u2716", star: "\u2605", "triangle-left": "\u25C0", "triangle-right": "\u25B6",
    "circle-open": "\u25CB", "square-open": "\u25A1", "triangle-up-open": "\u25B3", "diamond-open": "\u25C7", "triangle-down-open": "\u25BD", "cross-open": "\u271A", "x-open": "\u2716", "star-open": "\u2606", "triangle-left-open": "\u25C1", "triangle-right-open": "\u25B7" };
  const STROKES = { solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "12 4", longdashdot: "12 3 2 3" };
  const svg = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text) element.textContent = text;
    return element;
  };
  const swatch = (trace) => {
    const box = svg("svg", { width: 38, height: 14, "aria-hidden": "true" }), line = trace.line || {}, marker = trace.marker || {};
    const one = (value) => (Array.isArray(value) ? "#888888" : value);
    if (trace.type === "bar") {
      box.append(svg("rect", { x: 6, y: 1, width: 26, height: 12, fill: one(marker.color), "fill-opacity": marker.opacity ?? 1 }));
      if (marker.pattern && marker.pattern.shape) box.append(svg("text", { x: 19, y: 12, "text-anchor": "middle", "font-size": 13, fill: "#ffffff" }, marker.pattern.shape.repeat(4)));
      return box;
    }
    if (!trace.mode || trace.mode.includes("lines")) box.append(svg("line", { x1: 0, y1: 7, x2: 38, y2: 7, stroke: line.color, "stroke-width": line.width || 2, "stroke-dasharray": STROKES[line.dash] || "" }));
    if (trace.mode && trace.mode.includes("markers")) box.append(svg("text", { x: 19, y: 12, "text-anchor": "middle", "font-size": 13, fill: one(marker.color ?? line.color) }, GLYPHS[Array.isArray(marker.symbol) ? marker.symbol[0] : marker.symbol] || "\u25CF"));
    return box;
  };
  const off = () => new Set(state.off ? state.off.split("\n") : []);
  const traceName = (trace) => trace.name.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
  const legend = (id, traces) => {
    const hidden = off(), entries = traces.filter((trace) => trace.name && trace.showlegend !== false);
    byId(`${id}-legend`).replaceChildren(...(entries.length < 2 && !entries.some((trace) => hidden.has(traceName(trace))) ? [] : entries).map((trace) => {
      const button = document.createElement("button"), text = traceName(trace), shown = !hidden.has(text);
      button.type = "button";
      button.setAttribute("aria-pressed", String(shown));
      button.title = shown ? "click to hide" : "click to show";
      button.append(swatch(trace), text);
      button.addEventListener("click", () => {
        if (shown) hidden.add(text); else hidden.delete(text);
        set({ off: [...hidden].join("\n") });
        [...byId(`${id}-legend`).children].find((one) => one.textContent === text)?.focus();
      });
      return button;
    }));
    for (const trace of traces) if (trace.name && hidden.has(traceName(trace))) trace.visible = false;
  };
  // A title as wide as its plot.
  const wrapped = (text, width) => text.split(" ").reduce((lines, word) => {
    const last = lines[lines.length - 1];
    if (last && `${last} ${word}`.length > width) lines.push(word); else lines[lines.length - 1] = last ? `${last} ${word}` : word;
    return lines;
  }, [""]);
  const plot = (id, traces, shape, words) => {
    const box = byId(id);
    box.setAttribute("aria-label", words);
    const note = byId(`${id}-none`);
    note.hidden = traces.length > 0;
    box.hidden = !traces.length;
    legend(id, traces);
    if (!traces.length) { Plotly.purge(box); return; }
    if (!shape.title.text.includes("<br>")) {
      const lines = wrapped(shape.title.text, Math.max(20, Math.floor(box.clientWidth / 8.2)));
      shape.title.text = lines.join("<br>");
      shape.margin = { ...shape.margin, t: shape.margin.t + 18 * (lines.length - 1) };
    }
    // Without a height Plotly takes that of the box, which has its own from the plot: every second drawing would have none.
    shape.height ??= 450;
    Plotly.react(box, traces, shape, { displayModeBar: false, responsive: true });
  };

  // --- views ------------------------------------------------------------------------------------------------------
  // A plot of more than this can be neither read nor drawn in time; the filters above choose.
  const MOST_LINES = 40, MOST_POINTS = 1500;
  const some = (shown, all, what) => (shown < all ? ` (first ${shown} of ${all.toLocaleString("en-US")} ${what}: choose above)` : "");
  const wayKey = (one) => JSON.stringify([one.m, one.method, one.pattern, one.extra]);
  const lineKey = (one) => JSON.stringify([one.m, one.method, one.pattern, one.extra, one.variant]);
  const series = (cells) => {
    const found = new Map(), starts = new Map();
    for (const cell of cells.filter((one) => one.method !== "none")) {
      const key = lineKey(cell), way = wayKey(cell);
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(cell);
      starts.set(way, Math.min(cell.s, starts.get(way) ?? cell.s));
    }
    return [...found.values()].map((line) => {
      // A variant that starts later than others of its method is not joined to dense across what others measured.
      const late = starts.get(wayKey(line[0])) < Math.min(...line.map((cell) => cell.s));
      // Nor is a single point: a line to it would show a course that nobody measured.
      const dense = !late && new Set(line.map((cell) => cell.s)).size > 1 && data.cells.find((cell) => cell.m === line[0].m && cell.method === "none" && cell.variant === "dense");
      return [...(dense ? [dense] : []), ...line.sort((a, b) => a.s - b.s)];
    });
  };
  // Several calibration seeds are one point: their mean (of perplexity the geometric one), with the interval of the
  // tables where there are seeds enough for one, and their range where there are not.
  const overSeeds = (line, metric) => {
    const points = new Map();
    for (const cell of line) points.set(cell.s, [...(points.get(cell.s) || []), cell]);
    return [...points.values()].map((same) => {
      if (same.length === 1) return same[0];
      const cell = same[0], values = same.map((one) => one[metric]), mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
      const found = data.seeds.find((one) => one.m === cell.m && one.metric === metric && one.s === cell.s && one.variant === cell.variant && one.method === cell.method && one.pattern === cell.pattern && one.extra === cell.extra);
      return { ...cell, [metric]: metric === "perplexity" ? Math.exp(mean(values.map(Math.log))) : mean(values), [`${metric}_lo`]: found ? found.lo : Math.min(...values), [`${metric}_hi`]: found ? found.hi : Math.max(...values), interval: Boolean(found), seeds: same.length, cell: `${cell.cell} and ${same.length - 1} more` };
    });
  };
  const worse = (cell) => (cell.mark || "").includes("worse than guessing") && data.models[cell.m].trained;
  // Cells worse than guessing are named, not drawn: their perplexity says nothing more, and would squeeze all others.
  const leftOut = (id, cells) => {
    const by = new Map();
    for (const cell of cells) by.set(methodName(cell), new Set([...(by.get(methodName(cell)) || []), percent(cell.s)]));
    const named = [...by].map(([name, s]) => `${name} at ${[...s].join(", ")}`);
    byId(id).textContent = cells.length ? `Worse than guessing (perplexity above the size of the vocabulary) and not drawn: ${named.slice(0, 8).join("; ")}${named.length > 8 ? ` and ${named.length - 8} more` : ""}.` : "";
  };
  const curve = (id, metric, title, label, scale, log) => {
    const cells = chosen(), paint = painter(cells);
    const lines = series(cells);
    if (log) leftOut(`${id}-note`, cells.filter(worse));
    const traces = lines.slice(0, MOST_LINES).map((line) => {
      const cell = line[line.length - 1], look = paint(cell), known = overSeeds(line.filter((one) => one[metric] !== undefined && !(log && worse(one))), metric);
      const seeds = Math.max(...known.map((one) => one.seeds || 1));
      const spread = known.some((one) => one.seeds && one.interval) ? "95 % interval" : "range";
      const side = (sign, bound) => known.map((one) => (one[bound] === undefined ? 0 : sign * scale * (one[bound] - one[metric])));
      return {
        x: known.map((one) => 100 * one.s), y: known.map((one) => scale * one[metric]), mode: known.length > 1 ? "lines+markers" : "markers", type: "scatter",
        name: plain(`${modelName(cell)}${cell.variant}, ${methodName(cell)}${seeds > 1 ? `, mean and ${spread} of ${seeds} seeds` : ""}`),
        line: { color: look.colour, dash: look.dash, width: 2 },
        // Points that no line joins are told apart by filled and open marks where dashes would do it.
        marker: { symbol: look.symbol + (known.length > 1 ? "" : look.lone || ""), size: 8, color: look.colour },
        error_y: { type: "data", symmetric: false, array: side(1, `${metric}_hi`), arrayminus: side(-1, `${metric}_lo`), thickness: 1.2, width: 3, color: look.colour },
        customdata: known.map((one) => [
          one[`${metric}_lo`] === undefined ? "" : ` [${figure(scale * one[`${metric}_lo`])}, ${figure(scale * one[`${metric}_hi`])}]`,
          one.cell, plain(one.mark),
        ]),
        hovertemplate: `%{y:.4~g}%{customdata[0]} at %{x:.4~g} %<br>%{customdata[2]}<br>cell %{customdata[1]}<extra>%{fullData.name}</extra>`,
      };
    }).filter((trace) => trace.x.length && trace.x.some((x) => x > 0));
    const values = traces.flatMap((trace) => trace.y);
    const axis = log ? logAxis(values) : { rangemode: "tozero" };
    const drawn = new Set(lines.map((line) => lineKey(line[line.length - 1])));
    const tips = data.tipping.filter((tip) => tip.metric === metric && drawn.has(lineKey(tip)));
    const once = [...new Map(tips.map((tip) => [wayKey(tip), tip])).values()].slice(0, 12);
    const shapes = once.map((tip) => ({ type: "line", x0: 100 * tip.s, x1: 100 * tip.s, y0: 0, y1: 1, yref: "paper", line: { color: "#888888", width: 1, dash: paint(tip).dash || "solid" } }));
    const dense = data.cells.find((cell) => cell.m === +state.model && cell.method === "none" && cell.variant === "dense");
    if (log && state.model !== "" && dense && dense[metric] !== undefined) shapes.push({ type: "line", x0: 0, x1: 1, xref: "paper", y0: dense[metric], y1: dense[metric], line: { color: "#888888", width: 1, dash: "dot" } });
    const annotations = once.map((tip, n) => ({ x: 100 * tip.s, xanchor: "left", y: 0.98 - 0.07 * (n % 4), yref: "paper", showarrow: false, font: { size: 11 }, text: plain(`${[tip.method, tip.extra].filter(Boolean).join(", ")}: ${figure(100 * tip.s, 3)} %`) }));
    plot(id, traces, layout(title + some(Math.min(lines.length, MOST_LINES), lines.length, "lines"), "sparsity asked (%)", label, cells, { shapes, annotations, xaxis: { rangemode: "tozero" }, yaxis: axis }),
      `${title}: ${traces.length} lines. ${once.map((tip) => `${tip.method} leaves the tolerance at ${figure(100 * tip.s, 3)} %`).join("; ")}`);
  };

  const sparsities = () => [...new Set(chosen().filter((cell) => cell.method !== "none").map((cell) => cell.s))].sort((a, b) => a - b);
  const shownSparsity = () => {
    const found = sparsities();
    if (state.s !== "" && found.includes(+state.s)) return +state.s;
    return found.reduce((best, s) => (Math.abs(s - 0.3) < Math.abs(best - 0.3) ? s : best), found[0]);
  };
  const size = () => {
    const s = shownSparsity();
    const all = chosen().filter((cell) => cell.method === "none" || cell.s === s), wide = byId("view-size").parentElement.clientWidth > 640;
    // The same bytes in the same format are one bar, however many ways of pruning come to them.
    const alike = new Map();
    for (const cell of all) {
      const key = JSON.stringify([cell.m, cell.method === "none", cell.variant, cell.parts]);
      alike.set(key, [...(alike.get(key) || []), cell]);
    }
    const groups = [...alike.values()].slice(0, MOST_LINES), cells = groups.map((group) => group[0]), ways = groups.map((group) => [...new Set(group.map((cell) => `${methodName(cell)}${cell.seed === null ? "" : `, seed ${cell.seed}`}`))]);
    const several = ways.some((way) => way.length > 1) || new Set(cells.filter((cell) => cell.method !== "none").map((cell) => [cell.method, cell.pattern, cell.extra, cell.seed].join("|"))).size > 1;
    const seeded = new Set(cells.map((cell) => cell.seed).filter((seed) => seed !== null)).size > 1;
    const long = (cell) => `${methodName(cell)}${cell.seed === null || !seeded ? "" : `, seed ${cell.seed}`}`;
    const names = cells.map((cell, n) => {
      const one = modelName(cell) + (cell.method === "none" || !several ? cell.variant : ways[n].length > 1 ? `${cell.variant}, ${ways[n].length} ways of pruning` : `${cell.variant}, ${long(cell)}`);
      return wrapped(plain(one), wide ? 44 : 16).join("<br>");
    });
    const parts = Object.keys(data.components).concat([...new Set(cells.flatMap((cell) => Object.keys(cell.parts)))].filter((part) => !(part in data.components)));
    const shapes = { indices: "/", offsets: "x", mask: ".", scales: "\\", bias: "+" };
    const traces = parts.filter((part) => cells.some((cell) => cell.parts[part])).map((part) => ({
      type: "bar", orientation: "h", name: plain(data.components[part] || part), y: names, x: cells.map((cell) => (cell.parts[part] || 0) / MIB), showlegend: true,
      marker: { color: cells.map((cell) => colour(cell.variant)), opacity: part === "weight" ? 1 : 0.7, pattern: { shape: shapes[part] || "" }, line: { color: "#ffffff", width: 0.5 } },
      customdata: cells.map((cell, n) => [cell.bytes_total / MIB, cell.break_even_sparsity === undefined ? "" : `<br>smaller than dense from ${percent(cell.break_even_sparsity)}`, ways[n].length > 1 ? `<br>${ways[n].slice(0, 12).map(plain).join("<br>")}${ways[n].length > 12 ? "<br>..." : ""}` : ""]),
      hovertemplate: "%{fullData.name}: %{x:.1f} MiB of %{customdata[0]:.1f}%{customdata[1]}%{customdata[2]}<extra>%{y}</extra>",
    }));
    const lines = [], annotations = [];
    const references = [["bytes_dense_float32", "dense float32", "solid"], ["bytes_dense_published", "published dtype", "dash"], ["bytes_source_file", "source file", "dot"], ["bytes_dense_bf16", "dense-bf16 (lossy)", "longdash"], ["bytes_dense_int8", "dense-int8 (lossy)", "dashdot"], ["bytes_dense_q4", "dense-q4 (lossy)", "longdashdot"]];
    for (const [name, text, dash] of references) {
      const value = Math.max(...cells.map((cell) => cell[name] || 0)) / MIB;
      if (!(value > 0) || state.model === "") continue;
      lines.push({ type: "line", x0: value, x1: value, y0: 0, y1: 1, yref: "paper", line: { width: 1.5, dash, color: "#888888" } });
      // Each on a line of its own, above the mark of untrained models: two references may weigh the same.
      annotations.push({ x: value, y: 1, yshift: (untrained(cells) ? 22 : 0) + 13 * annotations.length, yref: "paper", yanchor: "bottom", showarrow: false, font: { size: 10 }, text: `${text}: ${value.toFixed(1)}` });
    }
    const above = 62 + 13 * annotations.length;
    plot("view-size", traces, layout(`Size by component${s === undefined ? "" : ` at ${percent(s)}`}${some(groups.length, alike.size, "bars")}`, "MiB (2^20 bytes)", "", cells, { barmode: "stack", shapes: lines, annotations, height: 95 + above + cells.length * (14 + 16 * Math.max(...names.map((name) => name.split("<br>").length))), margin: { l: 70, r: 20, t: above, b: 60 }, yaxis: { autorange: "reversed", type: "category" } }),
      `Size of ${cells.length} cells: ${cells.map((cell, n) => `${names[n]} ${figure(cell.bytes_total / MIB)} MiB`).slice(0, 12).join("; ")}`);
    const even = [...new Map(cells.filter((cell) => cell.break_even_sparsity !== undefined).map((cell) => [cell.variant, cell])).values()];
    byId("break-even").textContent = even.length ? `Smaller than dense in the same dtype from: ${even.map((cell) => `${cell.variant} ${percent(cell.break_even_sparsity)}`).join(", ")} (sparsity of each weight matrix).` : "";
  };

  const COSTS = { bytes: ["size", "MiB", "bytes_total", 1 / MIB], time: ["time per token", "ms per decoded token, measured", "decode_s_per_token", 1e3] };
  const LOSSES = { perplexity: ["Perplexity", "perplexity (lower left is better)", 1], top1_agreement: ["Top-1 agreement", "equal top-1 choices (%) (upper left is better)", 100] };
  const pareto = () => {
    // References stay whatever is chosen: what is not pruned is what pruning has to beat.
    const reference = (cell) => cell.method === "none" && (state.model === "" || cell.m === +state.model);
    const own = data.cells.filter((cell) => state.model === "" || cell.m === +state.model);
    const costs = Object.keys(COSTS).filter((key) => own.some((cell) => cell[COSTS[key][2]] !== undefined));
    const cost = costs.includes(state.cost) ? state.cost : "bytes", loss = state.loss in LOSSES ? state.loss : "perplexity";
    options(byId("cost"), costs.map((key) => [key, COSTS[key][0]]));
    byId("cost").value = cost;
    byId("loss").value = loss;
    const [costName, costLabel, costColumn, costScale] = COSTS[cost], [lossName, lossLabel, lossScale] = LOSSES[loss];
    const known = own.filter((cell) => cell[costColumn] !== undefined && cell[loss] !== undefined);
    const left = known.filter((cell) => loss === "perplexity" && worse(cell));
    leftOut("view-pareto-note", left.filter(fits));
    const all = known.filter((cell) => (fits(cell) || reference(cell)) && !left.includes(cell));
    const cells = all.slice(0, MOST_POINTS);
    const onFront = (cell) => (cell.front || "").split(" ").includes(`${cost}.${loss}`);
    const x = (cell) => costScale * cell[costColumn], y = (cell) => lossScale * cell[loss];
    const traces = [...new Set(cells.map((cell) => cell.variant))].map((variant) => {
      const same = cells.filter((cell) => cell.variant === variant);
      return {
        type: "scatter", mode: "markers", name: plain(variant), x: same.map(x), y: same.map(y),
        marker: { color: colour(variant), symbol: same.map((cell) => symbol(variant) + (cell.method === "none" ? "-open" : "")), size: same.map((cell) => (cell.method === "none" || onFront(cell) ? 11 : 7)), opacity: same.map((cell) => (cell.method === "none" || onFront(cell) ? 1 : 0.55)), line: { width: same.map((cell) => (cell.method === "none" ? 2 : 0)) } },
        text: same.map((cell) => plain(`${modelName(cell)}${cell.method === "none" ? "not pruned" : `${methodName(cell)} ${percent(cell.s)}`}${onFront(cell) ? ", on the front" : ""}`)),
        hovertemplate: `%{text}<br>${costName} %{x:.4~g}${cost === "bytes" ? " MiB" : " ms"}, ${lossName.toLowerCase()} %{y:.4~g}<extra>%{fullData.name}</extra>`,
      };
    });
    const axis = loss === "perplexity" ? logAxis(cells.map(y)) : { rangemode: "tozero" };
    const front = known.filter((cell) => onFront(cell) && !left.includes(cell)).sort((a, b) => x(a) - x(b));
    if (state.model !== "" && front.length) traces.push({ type: "scatter", mode: "lines", name: "front", x: front.map(x), y: front.map(y), line: { shape: "hv", color: "#888888", width: 1 }, hoverinfo: "skip" });
    // Dense in each format is named in the plot: the reader looks for it first.
    const hidden = off(), log = (value) => (axis.type === "log" ? Math.log10(value) : value);
    const annotations = state.model === "" ? [] : cells.filter((cell) => cell.method === "none" && !hidden.has(cell.variant)).slice(0, 8).map((cell, n) => ({ x: x(cell), y: log(y(cell)), text: plain(cell.variant), showarrow: true, arrowhead: 0, arrowwidth: 1, arrowcolor: "#888888", ax: 0, ay: (loss === "perplexity" ? 1 : -1) * (22 + 14 * (n % 2)), font: { size: 11 } }));
    // What the study did not evaluate of them has a size all the same: nobody should read a front without it.
    const lossy = [["bytes_dense_bf16", "dense-bf16"], ["bytes_dense_int8", "dense-int8"], ["bytes_dense_q4", "dense-q4"]];
    const shapes = [];
    for (const [name, variant] of cost === "bytes" && state.model !== "" ? lossy : []) {
      const value = costScale * Math.max(0, ...own.map((cell) => cell[name] || 0));
      if (!(value > 0) || known.some((cell) => cell.method === "none" && cell.variant === variant)) continue;
      shapes.push({ type: "line", x0: value, x1: value, y0: 0, y1: 1, yref: "paper", line: { width: 1, dash: "dot", color: "#888888" } });
      annotations.push({ x: value, y: 1, yref: "paper", yanchor: "top", xanchor: "left", textangle: 90, showarrow: false, font: { size: 10 }, text: `${variant}: not evaluated here` });
    }
    plot("view-pareto", traces, layout(`${lossName} against ${costName}${some(cells.length, all.length, "cells")}`, costLabel, lossLabel, cells, { yaxis: axis, shapes, annotations }),
      `${lossName} against ${costName} of ${cells.length} cells. On the front: ${front.slice(0, 8).map((cell) => `${cell.variant}${cell.method === "none" ? "" : `, ${methodName(cell)} ${percent(cell.s)}`} ${figure(x(cell))} ${cost === "bytes" ? "MiB" : "ms"}, ${figure(y(cell))}`).join("; ")}.`);
  };

  // Measured speed between what the bytes would allow and what the operations promise.
  const speed = () => {
    const own = data.speed.filter((one) => (state.model === "" || one.m === +state.model) && (!state.method || one.method === state.method) && (!state.pattern || one.pattern === state.pattern) && (!state.variant || one.variant === state.variant));
    if (!data.speed.length) return;
    const machines = [...new Set(own.map((one) => one.machine))], grouped = new Map();
    for (const one of own) {
      const key = JSON.stringify([one.m, one.machine, one.method, one.pattern, one.extra, one.variant]);
      grouped.set(key, [...(grouped.get(key) || []), one]);
    }
    const lines = [...grouped.values()].slice(0, MOST_LINES / 2);
    const paint = painter(own);
    const traces = [], promised = new Map();
    for (const line of lines.map((found) => [...found].sort((a, b) => a.s - b.s))) {
      const one = line[0], look = paint(one), name = [machines.length > 1 ? one.machine : "", `${modelName(one)}${one.variant}`, methodName(one)].filter(Boolean).join(", ");
      const common = { type: "scatter", x: line.map((cell) => 100 * cell.s), marker: { symbol: look.symbol, size: 8, color: look.colour } };
      traces.push({ ...common, mode: line.length > 1 ? "lines+markers" : "markers", y: line.map((cell) => cell.speedup), name: plain(`${name}: measured`), line: { color: look.colour, dash: "solid", width: 2 },
        error_y: { type: "data", symmetric: false, array: line.map((cell) => cell.most - cell.speedup), arrayminus: line.map((cell) => cell.speedup - cell.least), thickness: 1.2, width: 3, color: look.colour },
        customdata: line.map((cell) => [cell.least, cell.most, cell.ceiling ?? "", cell.promise ?? ""]),
        hovertemplate: "%{y:.3~g} x dense at %{x:.4~g} %, rounds from %{customdata[0]:.3~g} to %{customdata[1]:.3~g}<br>bytes allow %{customdata[2]:.3~g}, operations promise %{customdata[3]:.3~g}<extra>%{fullData.name}</extra>" });
      if (line.some((cell) => cell.ceiling !== undefined)) traces.push({ type: "scatter", mode: line.length > 1 ? "lines" : "markers", x: common.x, y: line.map((cell) => cell.ceiling), name: plain(`${name}: bytes would allow`), line: { color: look.colour, dash: "dot", width: 1.5 }, marker: { symbol: "line-ew-open", size: 14, color: look.colour }, hovertemplate: "bytes would allow %{y:.3~g} x at %{x:.4~g} %<extra>%{fullData.name}</extra>" });
      for (const cell of line) if (cell.promise !== undefined) promised.set(cell.s, cell.promise);
    }
    const steps = [...promised].sort((a, b) => a[0] - b[0]);
    if (steps.length) traces.push({ type: "scatter", mode: steps.length > 1 ? "lines" : "markers", x: steps.map(([s]) => 100 * s), y: steps.map(([, value]) => value), name: "operations promise (dense FLOPs / FLOPs of the non-zeros)", line: { color: "#888888", dash: "dash", width: 1.5 }, marker: { color: "#888888" }, hovertemplate: "operations promise %{y:.3~g} x at %{x:.4~g} %<extra></extra>" });
    const floor = Math.max(0, ...own.map((one) => one.floor || 0)), shapes = [{ type: "line", x0: 0, x1: 1, xref: "paper", y0: 1, y1: 1, line: { color: "#888888", width: 1 } }];
    if (floor > 1) shapes.push({ type: "rect", x0: 0, x1: 1, xref: "paper", y0: 1 / floor, y1: floor, fillcolor: "#888888", opacity: 0.15, line: { width: 0 }, layer: "below" });
    plot("view-speed", traces, layout("Measured decode speed against sparsity", "sparsity asked (%)", "x as fast as our dense kernels", own, { shapes, yaxis: { rangemode: "tozero" } }),
      `Measured decode speed: ${lines.map((line) => `${line[0].variant}, ${methodName(line[0])}: ${line.map((cell) => `${figure(cell.speedup, 3)} x at ${percent(cell.s)}`).join(", ")}`).slice(0, 6).join("; ")}`);
    byId("view-speed-note").textContent = own.length ? `${machines.join("; ")}. Bars: slowest and fastest round. ${floor > 1 ? `Grey band: cells that do the same work as dense stray from it by up to ${figure(floor, 3)} x, so nothing inside is a difference.` : ""}` : "";
  };

  const promise = () => {
    const cells = chosen().filter((cell) => cell.flops_theoretical && cell.flops_executed && cell.method !== "none").slice(0, MOST_POINTS);
    const measured = cells.some((cell) => cell.speedup !== undefined);
    const variants = [...new Set(cells.map((cell) => cell.variant))];
    const traces = variants.map((variant) => {
      const own = cells.filter((cell) => cell.variant === variant && (!measured || cell.speedup !== undefined));
      return {
        type: "scatter", mode: "markers", name: plain(variant), x: own.map((cell) => cell.flops_dense / cell.flops_theoretical), y: own.map((cell) => (measured ? cell.speedup : cell.flops_dense / cell.flops_executed)),
        marker: { color: colour(variant), symbol: symbol(variant), size: 8 }, text: own.map((cell) => plain(`${methodName(cell)} ${percent(cell.s)}`)),
        hovertemplate: "%{text}<br>promised %{x:.3~g} x, got %{y:.3~g} x<extra>%{fullData.name}</extra>",
      };
    });
    const top = Math.max(1.1, ...cells.map((cell) => cell.flops_dense / cell.flops_theoretical));
    plot("view-promise", traces, layout(measured ? "Speed against promise" : "Operations executed against promise", "promised by the non-zeros (x dense)", measured ? "measured speed (x dense)" : "executed (x fewer FLOPs than dense)", cells, { shapes: [{ type: "line", x0: 1, y0: 1, x1: top, y1: top, line: { color: "#888888", dash: "dot", width: 1 } }] }),
      `What ${cells.length} cells promise and what they do.`);
    byId("promise-note").textContent = measured ? "" : "No speed was measured in this study; the plot shows operations. Fewer operations are not yet time.";
  };

  const heat = () => {
    const maps = data.heat.map((map, n) => ({ ...map, n })).filter((map) => (state.model === "" || map.m === +state.model) && (!state.method || map.method === state.method) && (!state.pattern || map.pattern === state.pattern));
    const select = byId("heat");
    options(select, maps.map((map) => [String(map.n), `${state.model === "" ? `${data.models[map.m].model}, ` : ""}${[map.method, map.pattern, map.extra].filter(Boolean).join(" ")} ${percent(map.s)}`]));
    const map = maps.find((one) => String(one.n) === state.heat) || maps.find((one) => one.s === shownSparsity()) || maps[0];
    if (!map) { plot("view-heat", [], {}, ""); plot("view-layer", [], {}, ""); return; }
    select.value = String(map.n);
    const whats = Object.keys(map.values);
    options(byId("what"), whats.map((name) => [name, name]));
    const what = whats.includes(state.what) ? state.what : whats[0];
    byId("what").value = what;
    const scale = what === "zeros" || what.startsWith("share") ? 100 : what === "bytes" ? 1 / MIB : 1;
    const unit = what === "bytes" ? "MiB" : scale === 100 ? "%" : "";
    const z = map.values[what].map((line) => line.map((value) => (value === null ? null : value * scale)));
    const marked = [{ m: map.m }];
    plot("view-heat", [{ type: "heatmap", x: map.projections.map(plain), y: map.layers, z, colorscale: "Cividis", colorbar: { title: { text: unit } }, hovertemplate: `layer %{y}, %{x}: %{z:.4~g} ${unit}<extra></extra>` }],
      layout(`${what} by layer and projection`, "", "layer", marked, { height: 260 + 14 * map.layers.length, yaxis: { autorange: "reversed" } }),
      `${what} of ${map.layers.length} layers and ${map.projections.length} projections`);
    options(byId("layer"), map.layers.map((layer) => [String(layer), `layer ${layer}`]));
    const layer = map.layers.includes(+state.layer) && state.layer !== "" ? +state.layer : map.layers[0];
    byId("layer").value = String(layer);
    const line = z[map.layers.indexOf(layer)];
    plot("view-layer", [{ type: "bar", x: map.projections.map(plain), y: line, marker: { color: "#0072B2" }, hovertemplate: `%{x}: %{y:.4~g} ${unit}<extra></extra>` }], layout(`Layer ${layer}: ${what}`, "", unit, marked), `Layer ${layer}: ${map.projections.map((name, n) => `${name} ${figure(line[n])} ${unit}`).join(", ")}`);
    const box = byId("view-heat");
    if (!box.hidden && !box.dataset.bound) {
      box.dataset.bound = "1";
      box.on("plotly_click", (event) => set({ layer: String(event.points[0].y) }));
    }
  };

  const KINDS = { margin: ["Agreement by the dense model's margin", "top-1 to top-2 margin, dense model (nats)"], position: ["Agreement by position", "position in the window (token)"] };
  const bins = () => {
    const own = data.bins.filter((one) => (state.model === "" || one.m === +state.model) && (!state.method || one.method === state.method) && (!state.pattern || one.pattern === state.pattern));
    const kinds = [...new Set(own.flatMap((one) => Object.keys(one.by)))];
    options(byId("by"), kinds.map((kind) => [kind, kind === "margin" ? "margin of the dense model" : kind]));
    const by = kinds.includes(state.by) ? state.by : kinds[0];
    if (by !== undefined) byId("by").value = by;
    const s = shownSparsity(), all = own.filter((one) => one.s === s && one.by[by]), lines = all.slice(0, MOST_LINES);
    const [title, label] = KINDS[by] || [`Agreement by ${by}`, by];
    const paint = painter(lines);
    byId("by").form.hidden = !kinds.length;
    plot("view-bins", lines.map((one) => ({
      type: "scatter", mode: "lines+markers", x: one.by[by].labels, y: one.by[by].agreement.map((x) => 100 * x), name: plain(`${modelName(one)}${one.variant}, ${methodName(one)}`),
      line: { color: paint(one).colour, dash: paint(one).dash, width: 2 }, marker: { symbol: paint(one).symbol, size: 8, color: paint(one).colour },
      customdata: one.by[by].labels.map((_, k) => [one.by[by].positions[k], one.by[by].kl[k], one.by[by].lost[k] ?? 0, one.by[by].won[k] ?? 0]),
      hovertemplate: "%{x}: %{y:.4~g} % of %{customdata[0]:,} positions<br>KL %{customdata[1]:.3~g} nats; %{customdata[2]:,} tokens lost, %{customdata[3]:,} won<extra>%{fullData.name}</extra>",
    })), layout(`${plain(title)}${s === undefined ? "" : ` at ${percent(s)}`}${some(lines.length, all.length, "lines")}`, plain(label), "equal top-1 choices (%)", lines, { xaxis: { type: "category" } }),
      `${title}: ${lines.map((one) => `${one.method} ${one.by[by].labels.map((text, k) => `${text} ${figure(100 * one.by[by].agreement[k], 3)} %`).join(", ")}`).slice(0, 6).join("; ")}`);
  };
  const flips = () => {
    const all = series(chosen()).filter((line) => line.some((cell) => cell.dense_only_right !== undefined && cell.s > 0)), lines = all.slice(0, MOST_LINES / 2);
    const paint = painter(lines.map((line) => line[line.length - 1]));
    const traces = lines.flatMap((line) => {
      const cell = line[line.length - 1], look = paint(cell);
      return [["dense_only_right", "lost", "solid"], ["variant_only_right", "won", "dot"]].map(([metric, word, dash]) => {
        const known = overSeeds(line.filter((one) => one[metric] !== undefined), metric);
        return {
          type: "scatter", mode: known.length > 1 ? "lines+markers" : "markers", x: known.map((one) => 100 * one.s), y: known.map((one) => one[metric]), name: plain(`${word}: ${modelName(cell)}${cell.variant}, ${methodName(cell)}`),
          line: { color: look.colour, dash, width: 1.7 }, marker: { symbol: look.symbol + (word === "won" ? "-open" : ""), size: 8, color: look.colour },
          hovertemplate: `%{y:,.0f} tokens ${word} at %{x:.4~g} %<extra>%{fullData.name}</extra>`,
        };
      }).filter((trace) => trace.x.length);
    });
    plot("view-flips", traces, layout("Tokens of the text lost and won against dense" + some(lines.length, all.length, "lines"), "sparsity asked (%)", "predicted tokens", lines.map((line) => line[line.length - 1])),
      `Tokens lost and won against dense: ${lines.slice(0, 4).map((line) => { const cell = line[line.length - 1]; return `${methodName(cell)} ${cell.variant} at ${percent(cell.s)}: ${figure(cell.dense_only_right)} lost, ${figure(cell.variant_only_right)} won`; }).join("; ")}`);
  };

  const twins = () => {
    const one = data.twins[state.model === "" ? 0 : +state.model] || {};
    const cells = [{ m: state.model === "" ? 0 : +state.model }];
    const names = (one.variants || []).map(plain);
    const draws = [
      ["bytes", "Size (MiB)", (side) => [[names, side.bytes_total.map((x) => (x === null ? null : x / MIB))]]],
      ["global", "Zeros in the whole model (%)", (side) => [[names, side.sparsity.map((x) => (x === null ? null : 100 * x))]]],
      ["group", "Zeros by group (%)", (side) => grouped(side.group_sparsity, 100)],
      ["share", "Share of parameters (%)", (side) => grouped(side.group_param_fraction, 100)],
      ["flops", "FLOPs per token by group (million)", (side) => grouped(side.group_flops_executed, 1e-6)],
      ["agreement", "Top-1 agreement (%)", (side) => [[names, side.top1_agreement.map((x) => (x === null ? null : 100 * x))]]],
    ];
    const grouped = (groups, scale) => (one.variants || []).map((variant, n) => {
      const own = data.groups.filter((group) => groups[group] && groups[group][n] !== null);
      return [own, own.map((group) => scale * groups[group][n]), variant];
    });
    for (const [key, title, make] of draws) {
      for (const convention of ["study", "unique"]) {
        const side = one[convention];
        const bars = side ? make(side).map(([x, y, variant]) => ({ type: "bar", x, y, name: plain(variant || ""), showlegend: Boolean(variant), marker: { color: variant ? colour(variant) : (one.variants || []).map(colour) }, hovertemplate: "%{x}: %{y:.4~g}<extra>%{fullData.name}</extra>" })) : [];
        const label = convention === "study" ? "old accounting" : "corrected";
        plot(`twin-${key}-${convention}`, bars, layout(`${title}, ${label}`, "", "", cells, { height: 300, barmode: "group", title: { text: `${title}<br>${label}`, x: 0, xref: "paper", font: { size: 13 } }, xaxis: { type: "category" } }),
          `${title}, ${label}: ${bars.flatMap((bar) => bar.x.map((x, n) => `${bar.name} ${x} ${figure(bar.y[n])}`)).join("; ")}`);
      }
    }
  };

  // --- table ------------------------------------------------------------------------------------------------------
  const COLUMNS = [
    ["model", (c) => data.models[c.m].model], ["dtype", (c) => data.models[c.m].dtype], ["method", (c) => c.method], ["pattern", (c) => c.pattern],
    ["sparsity asked (%)", (c) => 100 * c.s], ["variant", (c) => c.variant], ["seed", (c) => c.seed], ["settings", (c) => c.extra],
    ["zeros, prunable (%)", (c) => scaled(c.sparsity_prunable, 100)], ["zeros, whole model (%)", (c) => scaled(c.sparsity, 100)],
    ["size (MiB)", (c) => scaled(c.bytes_total, 1 / MIB)], ["size / dense", (c) => c.bytes_ratio], ["MFLOPs per token", (c) => scaled(c.flops_executed, 1e-6)],
    ["top-1 agreement (%)", (c) => scaled(c.top1_agreement, 100)], ["agreement, low", (c) => scaled(c.top1_agreement_lo, 100)], ["agreement, high", (c) => scaled(c.top1_agreement_hi, 100)],
    ["KL (nats)", (c) => c.kl], ["KL, low", (c) => c.kl_lo], ["KL, high", (c) => c.kl_hi], ["perplexity", (c) => c.perplexity], ["perplexity, low", (c) => c.perplexity_lo],
    ["perplexity, high", (c) => c.perplexity_hi], ["dense perplexity", (c) => c.perplexity_dense], ["bits per byte", (c) => c.bits_per_byte],
    ["mark", (c) => [data.models[c.m].trained ? "" : "untrained", c.mark].filter(Boolean).join(", ")], ["lost", (c) => c.dense_only_right], ["won", (c) => c.variant_only_right], ["cell", (c) => c.cell],
  ];
  const scaled = (x, factor) => (x === undefined || x === null ? undefined : x * factor);
  const PAGE = 50;
  const tableRows = () => {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    let rows = chosen().map((cell) => COLUMNS.map(([, value]) => value(cell)));
    if (words.length) rows = rows.filter((row) => { const text = row.join(" ").toLowerCase(); return words.every((word) => text.includes(word)); });
    const column = COLUMNS.findIndex(([name]) => name === state.sort);
    if (column >= 0) {
      const sign = state.desc ? -1 : 1;
      const empty = (x) => x === undefined || x === null || x === "";
      rows.sort((a, b) => {
        const [x, y] = [a[column], b[column]];
        if (empty(x) || empty(y)) return empty(x) - empty(y);
        return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
      });
    }
    return rows;
  };
  const table = () => {
    const rows = tableRows(), pages = Math.max(1, Math.ceil(rows.length / PAGE)), page = Math.min(+state.page || 0, pages - 1);
    const head = document.createElement("tr");
    for (const [name] of COLUMNS) {
      const cell = document.createElement("th"), button = document.createElement("button");
      cell.scope = "col";
      button.type = "button";
      button.textContent = name;
      if (state.sort === name) cell.setAttribute("aria-sort", state.desc ? "descending" : "ascending");
      button.addEventListener("click", () => { set({ sort: name, desc: state.sort === name && !state.desc ? "1" : "", page: "0" }); byId("cells").querySelectorAll("th button")[COLUMNS.findIndex(([one]) => one === name)].focus(); });
      cell.append(button);
      head.append(cell);
    }
    const body = rows.slice(page * PAGE, (page + 1) * PAGE).map((row) => {
      const line = document.createElement("tr");
      for (const value of row) {
        const cell = document.createElement("td");
        if (typeof value === "number") cell.className = "number";
        cell.textContent = typeof value === "number" ? figure(value, 5) : value ?? "";
        line.append(cell);
      }
      return line;
    });
    const element = byId("cells");
    element.tHead.replaceChildren(head);
    element.tBodies[0].replaceChildren(...body);
    byId("count").textContent = `${rows.length.toLocaleString("en-US")} cells, page ${page + 1} of ${pages}`;
    byId("before").disabled = page === 0;
    byId("after").disabled = page >= pages - 1;
  };
  const download = () => {
    // A leading =, +, - or @ in text would be a formula to a spreadsheet.
    const quote = (value) => (typeof value === "number" ? String(value) : `"${String(value ?? "").replace(/^([=+\-@\t\r])/, "'$1").replace(/"/g, '""')}"`);
    const text = [COLUMNS.map(([name]) => quote(name)), ...tableRows().map((row) => row.map(quote))].map((row) => row.join(",")).join("\r\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = "cells.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  // --- controls ---------------------------------------------------------------------------------------------------
  const options = (select, pairs) => {
    const text = JSON.stringify(pairs);
    if (select.dataset.pairs === text) return;
    select.dataset.pairs = text;
    select.replaceChildren(...pairs.map(([value, name]) => new Option(name, value)));
  };
  const controls = () => {
    const unique = (name, cells) => [...new Set(cells.filter((cell) => cell.method !== "none").map((cell) => cell[name]))];
    const own = data.cells.filter((cell) => state.model === "" || cell.m === +state.model);
    options(byId("model"), [["", "all models"], ...data.models.map((model, n) => [String(n), `${model.model} · ${model.dtype}${model.trained ? "" : " (untrained)"}`])]);
    for (const name of FILTERS.slice(1)) {
      const values = unique(name, own);
      if (state[name] && !values.includes(state[name])) state[name] = "";
      options(byId(name), [["", `all ${name}s`], ...values.map((value) => [value, value])]);
    }
    options(byId("s"), sparsities().map((s) => [String(s), percent(s)]));
    for (const name of [...FILTERS, "q"]) if (byId(name).value !== state[name]) byId(name).value = state[name];
    const s = shownSparsity();
    if (s !== undefined) byId("s").value = String(s);
    byId("theme").value = state.theme;
  };
  const TWINS = { boxes: [...document.querySelectorAll("[id^='twin-'][role='img']")].map((box) => box.id), draw: twins };
  const VIEWS = [
    { boxes: ["view-perplexity"], draw: () => curve("view-perplexity", "perplexity", "Perplexity against sparsity", "perplexity", 1, true) },
    { boxes: ["view-agreement"], draw: () => curve("view-agreement", "top1_agreement", "Top-1 agreement against sparsity", "equal top-1 choices (%)", 100, false) },
    { boxes: ["view-size"], draw: size }, { boxes: ["view-speed"], draw: speed },
    { boxes: ["view-pareto"], draw: pareto }, { boxes: ["view-promise"], draw: promise },
    { boxes: ["view-bins"], draw: bins }, { boxes: ["view-flips"], draw: flips },
    { boxes: ["view-heat", "view-layer"], draw: heat }, TWINS,
  ];
  // More than half of the time to open a page went into reading this script: it waits for the first view or a quiet moment.
  const engine = () => {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = byId("plotly").textContent;
    document.head.append(script);
  };
  const settings = () => { document.documentElement.dataset.theme = state.theme || ""; controls(); byId("speed-view").hidden = !data.speed.length; };
  let lazy = null;
  const draw = () => { settings(); table(); lazy.refresh(); };

  for (const name of [...FILTERS, "s", "heat", "by", "what", "layer", "cost", "loss", "theme"]) byId(name).addEventListener("change", (event) => set({ [name]: event.target.value, page: "0", ...(FILTERS.includes(name) ? { heat: "" } : {}) }));
  byId("q").addEventListener("input", (event) => { Object.assign(state, { q: event.target.value, page: "0" }); write(); table(); });
  byId("before").addEventListener("click", () => set({ page: String(Math.max(0, +state.page - 1)) }));
  byId("after").addEventListener("click", () => set({ page: String(+state.page + 1) }));
  byId("download").addEventListener("click", download);
  byId("reset").addEventListener("click", () => { Object.assign(state, defaults); write(); draw(); });
  byId("twins").addEventListener("toggle", () => { if (byId("twins").open) lazy.now(TWINS); });
  system.addEventListener("change", draw);
  addEventListener("hashchange", () => { if (location.hash.startsWith("#/")) { read(); draw(); } });
  // Links inside the page scroll, and leave the state in the address alone.
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    const target = link && byId(link.getAttribute("href").slice(1));
    if (!target) return;
    event.preventDefault();
    for (let box = target.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    target.tabIndex = -1;
    target.focus({ preventScroll: true });
    target.scrollIntoView();
  });

  document.documentElement.classList.add("scripted");
  // On screen the views stand for the static tables and figures; on paper it is the other way round.
  const paper = matchMedia("print");
  const folded = () => { for (const box of document.querySelectorAll("details.static")) box.open = paper.matches; };
  const unfold = () => { for (const box of document.querySelectorAll("details.static")) box.open = true; };
  paper.addEventListener("change", folded);
  addEventListener("beforeprint", unfold);
  addEventListener("afterprint", folded);
  folded();
  read();
  settings();
  table();
  lazy = drawNearWindow(VIEWS, engine, () => { document.documentElement.dataset.ready = "1"; });
  const quiet = window.requestIdleCallback || ((work) => setTimeout(work, 200));
  addEventListener("load", () => quiet(engine));
})();
