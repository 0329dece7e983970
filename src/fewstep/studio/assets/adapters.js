element.addEventListener('change', event => {
  if (!event.target.closest || !event.target.closest('[data-adapter]')) return;
  const chosen = [...element.querySelectorAll('[data-adapter]')]
    .filter(card => card.querySelector('input[type=checkbox]').checked)
    .map(card => ({name: card.dataset.adapter, weight: Number(card.querySelector('input[type=range]').value)}));
  for (const card of element.querySelectorAll('[data-adapter]'))
    card.classList.toggle('chosen', card.querySelector('input[type=checkbox]').checked);
  props.value = {...props.value, chosen};
});
element.addEventListener('input', event => {
  if (event.target.type !== 'range') return;
  const card = event.target.closest('[data-adapter]');
  card.querySelector('output').textContent = Number(event.target.value).toFixed(2);
  card.querySelector('input[type=checkbox]').checked = true;
});
