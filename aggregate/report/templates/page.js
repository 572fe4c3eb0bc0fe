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
  const defaults = { model: "0", method: "", pattern: "", variant: "", heat: "", by: "margin", what: "zeros", layer: "", s: "", q: "", sort: "", desc: "", page: "0", theme: "" };
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
  // 20, 50, 100 instead of powers of ten, which few readers compare at sight.
  const ticks = [-3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8].flatMap((k) => [1, 2, 3, 5].map((n) => n * 10 ** k));
  const LOG = { type: "log", tickmode: "array", tickvals: ticks, ticktext: ticks.map((x) => x.toLocaleString("en-US", { maximumFractionDigits: 3 })) };
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];

  // --- what is chosen ---------------------------------------------------------------------------------------------
  const fits = (cell) =>
    (state.model === "" || cell.m === +state.model) &&
    (cell.method === "none" || ((!state.method || cell.method === state.method) && (!state.pattern || cell.pattern === state.pattern))) &&
    (!state.variant || cell.variant === state.variant || (cell.method === "none" && cell.variant === "dense"));
  const chosen = () => data.cells.filter(fits);
  const untrained = (cells) => cells.some((cell) => data.models[cell.m] && !data.models[cell.m].trained);
  const methodName = (cell) => [cell.method, cell.pattern, cell.extra].filter(Boolean).join(", ");
  const modelName = (cell) => (state.model === "" ? `${data.models[cell.m].model} ${data.models[cell.m].dtype}, ` : "");

  const layout = (title, x, y, cells, more = {}) => {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
    const mark = untrained(cells) ? [{ text: "untrained: random weights", xref: "paper", yref: "paper", x: 1, y: 1.1, showarrow: false, font: { color: "#ffffff" }, bgcolor: "#a63d00", borderpad: 3 }] : [];
    const { annotations = [], xaxis = {}, yaxis = {}, ...rest } = more;
    return {
      title: { text: title, x: 0, xref: "paper", font: { size: 15 } },
      font: { color: ink, family: "system-ui, sans-serif", size: 13 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 70, r: 20, t: 60, b: 55 }, hovermode: "closest",
      legend: { orientation: "h", y: -0.28, yanchor: "top", font: { size: 11 } },
      xaxis: { title: { text: x, standoff: 8 }, gridcolor: line, zerolinecolor: line, automargin: true, ...xaxis },
      yaxis: { title: { text: y }, gridcolor: line, zerolinecolor: line, automargin: true, ...yaxis },
      annotations: [...mark, ...annotations], ...rest,
    };
  };
  const plot = (id, traces, shape, words) => {
    const box = byId(id);
    box.setAttribute("aria-label", words);
    const note = byId(`${id}-none`);
    note.hidden = traces.length > 0;
    box.hidden = !traces.length;
    if (traces.length) Plotly.react(box, traces, shape, { displayModeBar: false, responsive: true });
    else Plotly.purge(box);
  };

  // --- views ------------------------------------------------------------------------------------------------------
  // A plot of more than this can be neither read nor drawn in time; the filters above choose.
  const MOST_LINES = 40, MOST_POINTS = 1500;
  const some = (shown, all, what) => (shown < all ? ` (first ${shown} of ${all.toLocaleString("en-US")} ${what}: choose above)` : "");
  const series = (cells) => {
    const found = new Map();
    for (const cell of cells.filter((one) => one.method !== "none")) {
      const key = JSON.stringify([cell.m, cell.method, cell.pattern, cell.extra, cell.variant]);
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(cell);
    }
    return [...found.values()].map((line) => {
      // A variant that starts later than others of its method is not joined to dense across what others measured.
      const first = Math.min(...line.map((cell) => cell.s));
      const late = cells.some((cell) => cell.m === line[0].m && cell.method === line[0].method && cell.pattern === line[0].pattern && cell.extra === line[0].extra && cell.s < first);
      const dense = !late && data.cells.find((cell) => cell.m === line[0].m && cell.method === "none" && cell.variant === "dense");
      return [...(dense ? [dense] : []), ...line.sort((a, b) => a.s - b.s)];
    });
  };
  // Several calibration seeds are one point: their mean, and their range in place of an interval.
  const overSeeds = (line, metric) => {
    const points = new Map();
    for (const cell of line) points.set(cell.s, [...(points.get(cell.s) || []), cell]);
    return [...points.values()].map((same) => {
      if (same.length === 1) return same[0];
      const values = same.map((cell) => cell[metric]);
      return { ...same[0], [metric]: values.reduce((a, b) => a + b, 0) / values.length, [`${metric}_lo`]: Math.min(...values), [`${metric}_hi`]: Math.max(...values), seeds: same.length, cell: `${same[0].cell} and ${same.length - 1} more` };
    });
  };
  const curve = (id, metric, title, label, scale, log) => {
    const cells = chosen();
    const methods = [...new Set(cells.filter((cell) => cell.method !== "none").map(methodName))];
    const lines = series(cells);
    const traces = lines.slice(0, MOST_LINES).map((line) => {
      const cell = line[line.length - 1], known = overSeeds(line.filter((one) => one[metric] !== undefined), metric);
      const seeds = Math.max(...known.map((one) => one.seeds || 1));
      const side = (sign, bound) => known.map((one) => (one[bound] === undefined ? 0 : sign * scale * (one[bound] - one[metric])));
      return {
        x: known.map((one) => 100 * one.s), y: known.map((one) => scale * one[metric]), mode: "lines+markers", type: "scatter",
        name: plain(`${modelName(cell)}${cell.variant}, ${methodName(cell)}${seeds > 1 ? `, mean and range of ${seeds} seeds` : ""}`),
        line: { color: colour(cell.variant), dash: DASHES[methods.indexOf(methodName(cell)) % DASHES.length], width: 2 },
        marker: { symbol: symbol(cell.variant), size: 8 },
        error_y: { type: "data", symmetric: false, array: side(1, `${metric}_hi`), arrayminus: side(-1, `${metric}_lo`), thickness: 1.2, width: 3 },
        customdata: known.map((one) => [
          one[`${metric}_lo`] === undefined ? "" : ` [${figure(scale * one[`${metric}_lo`])}, ${figure(scale * one[`${metric}_hi`])}]`,
          one.cell, plain(one.mark),
        ]),
        hovertemplate: `%{y:.4~g}%{customdata[0]} at %{x:.4~g} %<br>%{customdata[2]}<br>cell %{customdata[1]}<extra>%{fullData.name}</extra>`,
      };
    }).filter((trace) => trace.x.length);
    const values = traces.flatMap((trace) => trace.y);
    // Within half a decade a logarithmic axis is nearly linear, and round steps read best.
    const axis = log ? (Math.max(...values) > 3 * Math.min(...values) ? LOG : {}) : { rangemode: "tozero" };
    const tips = data.tipping.filter((tip) => tip.metric === metric && cells.some((cell) => cell.method === tip.method && cell.pattern === tip.pattern && cell.variant === tip.variant && cell.m === tip.m && cell.extra === tip.extra));
    const once = [...new Map(tips.map((tip) => [`${tip.m}|${tip.method}|${tip.pattern}|${tip.extra}`, tip])).values()].slice(0, 12);
    const shapes = once.map((tip) => ({ type: "line", x0: 100 * tip.s, x1: 100 * tip.s, y0: 0, y1: 1, yref: "paper", line: { color: "#888888", width: 1, dash: DASHES[methods.indexOf(methodName(tip)) % DASHES.length] || "solid" } }));
    const annotations = once.map((tip, n) => ({ x: 100 * tip.s, xanchor: "left", y: 0.98 - 0.07 * (n % 4), yref: "paper", showarrow: false, font: { size: 11 }, text: plain(`${[tip.method, tip.extra].filter(Boolean).join(", ")}: ${figure(100 * tip.s, 3)} %`) }));
    plot(id, traces, layout(title + some(traces.length, lines.length, "lines"), "sparsity asked (%)", label, cells, { shapes, annotations, yaxis: axis }),
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
    const all = chosen().filter((cell) => cell.method === "none" || cell.s === s), cells = all.slice(0, MOST_LINES);
    const several = new Set(cells.filter((cell) => cell.method !== "none").map((cell) => [cell.method, cell.pattern, cell.extra, cell.seed].join("|"))).size > 1;
    const seeded = new Set(cells.map((cell) => cell.seed).filter((seed) => seed !== null)).size > 1;
    const names = cells.map((cell) => plain(modelName(cell) + (cell.method === "none" || !several ? cell.variant : `${cell.variant}, ${methodName(cell)}${cell.seed === null || !seeded ? "" : `, seed ${cell.seed}`}`)));
    const parts = Object.keys(data.components).concat([...new Set(cells.flatMap((cell) => Object.keys(cell.parts)))].filter((part) => !(part in data.components)));
    const shapes = { indices: "/", offsets: "x", mask: ".", scales: "\\", bias: "+" };
    const traces = parts.filter((part) => cells.some((cell) => cell.parts[part])).map((part) => ({
      type: "bar", orientation: "h", name: plain(data.components[part] || part), y: names, x: cells.map((cell) => (cell.parts[part] || 0) / MIB),
      marker: { color: cells.map((cell) => colour(cell.variant)), opacity: part === "weight" ? 1 : 0.7, pattern: { shape: shapes[part] || "" }, line: { color: "#ffffff", width: 0.5 } },
      customdata: cells.map((cell) => [cell.bytes_total / MIB, cell.break_even_sparsity === undefined ? "" : `<br>smaller than dense from ${percent(cell.break_even_sparsity)}`]),
      hovertemplate: "%{fullData.name}: %{x:.1f} MiB of %{customdata[0]:.1f}%{customdata[1]}<extra>%{y}</extra>",
    }));
    const lines = [], annotations = [];
    const references = [["bytes_dense_float32", "dense float32", "solid"], ["bytes_dense_published", "published dtype", "dash"], ["bytes_source_file", "source file", "dot"]];
    references.forEach(([name, text, dash], n) => {
      const value = Math.max(...cells.map((cell) => cell[name] || 0)) / MIB;
      if (!(value > 0) || state.model === "") return;
      lines.push({ type: "line", x0: value, x1: value, y0: 0, y1: 1, yref: "paper", line: { width: 1.5, dash, color: "#888888" } });
      annotations.push({ x: value, y: 1 + 0.05 * n, yref: "paper", yanchor: "bottom", showarrow: false, font: { size: 10 }, text: `${text}: ${value.toFixed(1)}` });
    });
    plot("view-size", traces, layout(`Size by component${s === undefined ? "" : ` at ${percent(s)}`}${some(cells.length, all.length, "cells")}`, "MiB (2^20 bytes)", "", cells, { barmode: "stack", shapes: lines, annotations, height: 220 + 30 * cells.length, margin: { l: 70, r: 20, t: 95, b: 60 }, yaxis: { autorange: "reversed", type: "category" } }),
      `Size of ${cells.length} cells: ${cells.map((cell, n) => `${names[n]} ${figure(cell.bytes_total / MIB)} MiB`).slice(0, 12).join("; ")}`);
    const even = [...new Map(cells.filter((cell) => cell.break_even_sparsity !== undefined).map((cell) => [cell.variant, cell])).values()];
    byId("break-even").textContent = even.length ? `Smaller than dense in the same dtype from: ${even.map((cell) => `${cell.variant} ${percent(cell.break_even_sparsity)}`).join(", ")} (sparsity of each weight matrix).` : "";
  };

  const pareto = () => {
    // References stay whatever is chosen: what is not pruned is what pruning has to beat.
    const reference = (cell) => cell.method === "none" && (state.model === "" || cell.m === +state.model);
    const all = data.cells.filter((cell) => (fits(cell) || reference(cell)) && cell.bytes_total !== undefined && cell.perplexity !== undefined);
    const rank = (cell) => 2 * (cell.method === "none") + cell.front;
    const cells = [...all].sort((a, b) => rank(b) - rank(a)).slice(0, MOST_POINTS);
    const variants = [...new Set(cells.map((cell) => cell.variant))];
    const traces = variants.map((variant) => {
      const own = cells.filter((cell) => cell.variant === variant);
      return {
        type: "scatter", mode: "markers", name: plain(variant), x: own.map((cell) => cell.bytes_total / MIB), y: own.map((cell) => cell.perplexity),
        marker: { color: colour(variant), symbol: own.map((cell) => symbol(variant) + (cell.method === "none" ? "-open" : "")), size: own.map((cell) => (cell.front ? 11 : 7)), opacity: own.map((cell) => (cell.front ? 1 : 0.55)) },
        text: own.map((cell) => plain(`${modelName(cell)}${cell.method === "none" ? "not pruned" : `${methodName(cell)} ${percent(cell.s)}`}${cell.front ? ", on the front" : ""}`)),
        hovertemplate: "%{text}<br>%{x:.1f} MiB, perplexity %{y:.4~g}<extra>%{fullData.name}</extra>",
      };
    });
    if (state.model !== "") {
      const front = data.cells.filter((cell) => cell.m === +state.model && cell.front).sort((a, b) => a.bytes_total - b.bytes_total);
      if (front.length) traces.push({ type: "scatter", mode: "lines", name: "front", x: front.map((cell) => cell.bytes_total / MIB), y: front.map((cell) => cell.perplexity), line: { shape: "hv", color: "#888888", width: 1 }, hoverinfo: "skip" });
    }
    plot("view-pareto", traces, layout("Perplexity against size" + some(cells.length, all.length, "cells"), "MiB", "perplexity (lower left is better)", cells, { yaxis: LOG }),
      `Perplexity against size of ${cells.length} cells; ${cells.filter((cell) => cell.front).length} are on the front.`);
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

  const KINDS = { margin: ["Agreement by the dense model's margin", "margin between the dense model's two best tokens (nats)"], position: ["Agreement by position", "position in the window (token)"] };
  const bins = () => {
    const own = data.bins.filter((one) => (state.model === "" || one.m === +state.model) && (!state.method || one.method === state.method) && (!state.pattern || one.pattern === state.pattern));
    const kinds = [...new Set(own.flatMap((one) => Object.keys(one.by)))];
    options(byId("by"), kinds.map((kind) => [kind, kind === "margin" ? "margin of the dense model" : kind]));
    const by = kinds.includes(state.by) ? state.by : kinds[0];
    if (by !== undefined) byId("by").value = by;
    const s = shownSparsity(), all = own.filter((one) => one.s === s && one.by[by]), lines = all.slice(0, MOST_LINES);
    const [title, label] = KINDS[by] || [`Agreement by ${by}`, by];
    plot("view-bins", lines.map((one, n) => ({
      type: "scatter", mode: "lines+markers", x: one.by[by].labels, y: one.by[by].agreement.map((x) => 100 * x), name: plain(`${modelName(one)}${one.variant}, ${methodName(one)}`),
      line: { color: colour(one.variant), dash: DASHES[n % DASHES.length], width: 2 }, marker: { symbol: symbol(one.variant), size: 8 },
      customdata: one.by[by].labels.map((_, k) => [one.by[by].positions[k], one.by[by].kl[k], one.by[by].lost[k] ?? 0, one.by[by].won[k] ?? 0]),
      hovertemplate: "%{x}: %{y:.4~g} % of %{customdata[0]:,} positions<br>KL %{customdata[1]:.3~g} nats; %{customdata[2]:,} tokens lost, %{customdata[3]:,} won<extra>%{fullData.name}</extra>",
    })), layout(`${plain(title)}${s === undefined ? "" : ` at ${percent(s)}`}${some(lines.length, all.length, "lines")}`, plain(label), "equal top-1 choices (%)", lines, { xaxis: { type: "category" } }),
      `${title}: ${lines.map((one) => `${one.method} ${one.by[by].labels.map((text, k) => `${text} ${figure(100 * one.by[by].agreement[k], 3)} %`).join(", ")}`).slice(0, 6).join("; ")}`);
  };
  const flips = () => {
    const all = series(chosen()), lines = all.slice(0, MOST_LINES / 2);
    const methods = [...new Set(lines.map((line) => methodName(line[line.length - 1])))];
    const traces = lines.flatMap((line) => {
      const cell = line[line.length - 1];
      return [["dense_only_right", "lost", "solid"], ["variant_only_right", "won", "dot"]].map(([metric, word, dash]) => {
        const known = overSeeds(line.filter((one) => one[metric] !== undefined), metric);
        return {
          type: "scatter", mode: "lines+markers", x: known.map((one) => 100 * one.s), y: known.map((one) => one[metric]), name: plain(`${word}: ${modelName(cell)}${cell.variant}, ${methodName(cell)}`),
          line: { color: colour(cell.variant), dash, width: 1 + 1.5 / (1 + methods.indexOf(methodName(cell))) }, marker: { symbol: symbol(cell.variant) + (word === "won" ? "-open" : ""), size: 8 },
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
    ["top-1 agreement (%)", (c) => scaled(c.top1_agreement, 100)], ["KL (nats)", (c) => c.kl], ["perplexity", (c) => c.perplexity], ["perplexity, low", (c) => c.perplexity_lo],
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
  const STEPS = [
    () => { document.documentElement.dataset.theme = state.theme || ""; controls(); },
    () => curve("view-perplexity", "perplexity", "Perplexity against sparsity", "perplexity", 1, true),
    () => curve("view-agreement", "top1_agreement", "Top-1 agreement against sparsity", "equal top-1 choices (%)", 100, false),
    size, table, pareto, promise, bins, flips, heat,
    () => { if (byId("twins").open) twins(); },
  ];
  const draw = () => STEPS.forEach((step) => step());
  // The first time one after the other, so that a reader can read and scroll in between.
  const drawFirst = (n = 0) => {
    if (n === STEPS.length) { document.documentElement.dataset.ready = "1"; return; }
    STEPS[n]();
    setTimeout(drawFirst, 0, n + 1);
  };

  for (const name of [...FILTERS, "s", "heat", "by", "what", "layer", "theme"]) byId(name).addEventListener("change", (event) => set({ [name]: event.target.value, page: "0", ...(FILTERS.includes(name) ? { heat: "" } : {}) }));
  byId("q").addEventListener("input", (event) => { Object.assign(state, { q: event.target.value, page: "0" }); write(); table(); });
  byId("before").addEventListener("click", () => set({ page: String(Math.max(0, +state.page - 1)) }));
  byId("after").addEventListener("click", () => set({ page: String(+state.page + 1) }));
  byId("download").addEventListener("click", download);
  byId("reset").addEventListener("click", () => { Object.assign(state, defaults); write(); draw(); });
  byId("twins").addEventListener("toggle", () => { if (byId("twins").open) twins(); });
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
  for (const box of document.querySelectorAll("details.static")) box.open = false;
  read();
  drawFirst();
})();
