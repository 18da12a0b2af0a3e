// Reads out the points nearest to the pointer. The page says everything without it.
for (const figure of document.querySelectorAll("figure")) {
  const readout = figure.querySelector(".readout");
  for (const svg of figure.querySelectorAll("svg.panel:not(.strip)")) {
    const hits = [...svg.querySelectorAll(".hit")];
    const guide = svg.querySelector(".guide");
    const clear = () => {
      hits.forEach((hit) => hit.classList.remove("on"));
      guide.classList.remove("on");
      readout.textContent = "";
    };
    svg.addEventListener("pointerleave", clear);
    svg.addEventListener("pointermove", (event) => {
      const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
      clear();
      const nearest = new Map();
      for (const hit of hits) {
        const away = Math.abs(hit.cx.baseVal.value - x);
        const known = nearest.get(hit.dataset.arm);
        if (!known || away < known.away) nearest.set(hit.dataset.arm, { hit, away });
      }
      const close = [...nearest.values()].filter(({ away }) => away < 40).map(({ hit }) => hit);
      if (!close.length) return;
      close.forEach((hit) => hit.classList.add("on"));
      guide.classList.add("on");
      guide.setAttribute("x1", x);
      guide.setAttribute("x2", x);
      readout.textContent = close.map((hit) => hit.dataset.words).join("   ·   ");
    });
  }
}
