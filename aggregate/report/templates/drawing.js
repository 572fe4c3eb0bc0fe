"use strict";
// Draws views as they come near the window: a large run has more plots than anyone waits for, and few are looked at.
// On paper the static figures stand for the views (page.css), so nothing has to be drawn for a printer.

// `views`: { boxes: ids of plots, draw } in the order of the page. `engine` makes the library of plots ready; `first` is
// called once, when all that was near the window at first is drawn.
const drawNearWindow = (views, engine, first) => {
  const stale = new Set(views), near = new Set();
  const owner = new Map(views.flatMap((view) => view.boxes.map((id) => [document.getElementById(id).parentElement, view])));
  const inSight = (view) => view.boxes.some((id) => near.has(document.getElementById(id).parentElement));
  const now = (view) => { engine(); stale.delete(view); view.draw(); };
  const afterFrame = (work) => requestAnimationFrame(() => setTimeout(work));
  let opened = false, waiting = false;
  // One view a frame, so that a reader sees it, can scroll and choose before the next.
  const next = () => {
    const view = views.find((one) => stale.has(one) && inSight(one));
    waiting = Boolean(view);
    if (view) { now(view); afterFrame(next); return; }
    if (!opened) { opened = true; first(); }
  };
  // Half a window ahead in both directions: who scrolls on finds the plot there.
  const observer = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes) if (isIntersecting) near.add(target); else near.delete(target);
    if (!waiting) { waiting = true; next(); }
  }, { rootMargin: "50% 0px" });
  for (const box of owner.keys()) observer.observe(box);
  return {
    // After a choice: what is near the window at once, the others when they come near.
    refresh: () => { for (const view of views) stale.add(view); for (const view of views.filter(inSight)) now(view); },
    now,
  };
};
