const cards = () => [...element.querySelectorAll('[data-adapter]')];
const tick = card => card.querySelector('input[type=checkbox]');
const weight = card => card.querySelector('input[type=range]');
const mark = () => cards().forEach(card => card.classList.toggle('chosen', tick(card).checked));
// What is drawn anew keeps the ticks of the page: they are those of the value, whatever was ticked before.
const sync = () => {
  const chosen = new Map((props.value?.chosen || []).map(one => [one.name, one.weight]));
  for (const card of cards()) {
    const set = chosen.get(card.dataset.adapter);
    tick(card).checked = set !== undefined;
    if (set !== undefined) {
      weight(card).value = set;
      card.querySelector('output').textContent = Number(set).toFixed(2);
    }
  }
  mark();
};
watch('value', sync);
sync();
element.addEventListener('change', event => {
  if (!event.target.closest || !event.target.closest('[data-adapter]')) return;
  mark();
  const chosen = cards().filter(card => tick(card).checked)
    .map(card => ({name: card.dataset.adapter, weight: Number(weight(card).value)}));
  props.value = {...props.value, chosen};
});
element.addEventListener('input', event => {
  const card = event.target.closest('[data-adapter]');
  if (event.target.type !== 'range' || !card) return;
  card.querySelector('output').textContent = Number(event.target.value).toFixed(2);
  tick(card).checked = true;
});
