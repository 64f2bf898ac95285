// A chart that Plotly updates where it stands. `data`: the figure as JSON, its configuration, title and height.
const AGAIN_MS = 50;
const PATIENCE = 600; // looks for Plotly, which comes by itself: half a minute

function placeIn(parent, height) {
  let place = parent.querySelector(".ftlab-plot");
  if (!place) {
    place = document.createElement("div");
    place.className = "ftlab-plot";
    place.style.height = `${height}px`;
    place.setAttribute("role", "img");
    parent.appendChild(place);
    new ResizeObserver(() => {
      if (place.isConnected && place.data && place.offsetWidth > 0) window.Plotly.Plots.resize(place);
    }).observe(place);
  }
  return place;
}

function draw(place, looks) {
  if (window.Plotly) {
    const { figure, config } = place.wanted;
    const { data, layout } = JSON.parse(figure);
    try {
      window.Plotly.react(place, data, layout, config);
    } catch (error) {
      window.Plotly.purge(place);
      place.textContent = `This chart cannot be drawn: ${error.message}`;
    }
  } else if (looks > 0) {
    setTimeout(() => draw(place, looks - 1), AGAIN_MS);
  } else {
    place.textContent = "Plotly has not been loaded: reload the page.";
  }
}

export default function ({ data, parentElement }) {
  const place = placeIn(parentElement, data.height);
  const isWaiting = Boolean(place.wanted) && !window.Plotly;
  place.wanted = data;
  place.setAttribute("aria-label", data.title);
  if (!isWaiting) draw(place, PATIENCE);
}
